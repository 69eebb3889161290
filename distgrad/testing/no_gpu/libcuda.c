// A driver that has an H200 and runs nothing: enough for libraries that compile kernels for one.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { NOT_FOUND = 500, NOT_SUPPORTED = 801 };
static void* const SOMETHING = (void*)0x10;  // handles that nobody looks into

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = 0; return 0; }
int cuDeviceGetName(char* name, int length, int device) {
    strncpy(name, "NVIDIA H200", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 150754820096; return 0; }
int cuDeviceGetUuid_v2(char* uuid, int device) { memset(uuid, 1, 16); return 0; }

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    switch (attribute) {
        case 1: case 2: case 3: *value = 1024; break;       // threads of a block, its x and y
        case 4: *value = 64; break;                         // its z
        case 5: *value = 2147483647; break;                 // blocks of a grid
        case 6: case 7: *value = 65535; break;
        case 8: *value = 49152; break;                      // shared memory of a block
        case 10: *value = 32; break;                        // threads of a warp
        case 12: case 82: *value = 65536; break;            // registers
        case 13: *value = 1980000; break;                   // clock
        case 16: *value = 132; break;                       // multiprocessors
        case 38: *value = 62914560; break;                  // L2 cache
        case 39: *value = 2048; break;                      // threads of a multiprocessor
        case 75: *value = 9; break;                         // compute capability
        case 76: *value = 0; break;
        case 81: *value = 233472; break;                    // shared memory of a multiprocessor
        case 95: *value = 1; break;                         // cooperative launch
        case 97: *value = 232448; break;                    // shared memory that a block can ask for
        case 106: *value = 32; break;                       // blocks of a multiprocessor
        case 111: *value = 1024; break;                     // shared memory that is reserved
        default: *value = 0;
    }
    return 0;
}

int cuCtxGetCurrent(void** context) { *context = SOMETHING; return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuCtxPushCurrent(void* context) { return 0; }
int cuCtxPopCurrent(void** context) { return 0; }
int cuCtxGetDevice(int* device) { *device = 0; return 0; }
int cuCtxGetLimit(size_t* value, int limit) { *value = 1024; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = SOMETHING; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    *flags = 0;
    *active = 1;
    return 0;
}
int cuGetErrorString(int error, const char** text) { *text = "there is no GPU"; return 0; }
int cuGetErrorName(int error, const char** text) { *text = "there is no GPU"; return 0; }
int cuGetExportTable(const void** table, const void* id) { *table = NULL; return NOT_FOUND; }

// Kernels are loaded to ask what they need, and never launched.
int cuLibraryLoadData(void** library) { *library = SOMETHING; return 0; }
int cuLibraryLoadFromFile(void** library) { *library = SOMETHING; return 0; }
int cuLibraryGetKernel(void** kernel) { *kernel = SOMETHING; return 0; }
int cuLibraryUnload(void* library) { return 0; }
int cuKernelGetAttribute(int* value) { *value = 0; return 0; }
int cuKernelSetAttribute(void) { return 0; }
int cuOccupancyMaxPotentialClusterSize(int* size) { *size = 8; return 0; }

static int refuses(void) { return NOT_SUPPORTED; }
#define REFUSES(name) int name(void) { return NOT_SUPPORTED; }
REFUSES(cuLaunchKernel) REFUSES(cuLaunchKernelEx) REFUSES(cuLaunchCooperativeKernel)
REFUSES(cuLinkCreate) REFUSES(cuLinkAddData) REFUSES(cuLinkComplete) REFUSES(cuLinkDestroy)
REFUSES(cuStreamGetCtx)

int cuGetProcAddress_v2(
    const char* name, void** function, int version, unsigned long long flags, int* status) {
    char second[128];
    Dl_info here;
    dladdr((void*)cuInit, &here);
    void* self = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    snprintf(second, sizeof second, "%s_v2", name);
    *function = dlsym(self, second);
    if (!*function) *function = dlsym(self, name);
    if (!*function) *function = (void*)refuses;
    if (status) *status = 0;
    return 0;
}
