// What cuDNN's frontend asks of the CUDA runtime before it builds a plan: which GPU there is.
#include <stddef.h>
#include <string.h>

enum { NOT_SUPPORTED = 801 };

// The head of CUDA 13's cudaDeviceProp, as far as it is read.
struct Properties {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t memory, shared_memory;
    int registers, warp;
    size_t pitch;
    int threads, block[3], grid[3];
    size_t constants;
    int major, minor;
    size_t texture_alignment, pitch_alignment;
    int multiprocessors;
};

int cudaGetDevice(int* device) { *device = 0; return 0; }
int cudaGetDeviceCount(int* count) { *count = 1; return 0; }
int cudaGetLastError(void) { return 0; }
const char* cudaGetErrorString(int error) { return "there is no GPU"; }

int cudaGetDeviceProperties(struct Properties* found, int device) {
    memset(found, 0, sizeof *found);
    strcpy(found->name, "NVIDIA H200");
    found->memory = 150754820096;
    found->shared_memory = 49152;
    found->registers = 65536;
    found->warp = 32;
    found->threads = 1024;
    found->major = 9;
    found->multiprocessors = 132;
    return 0;
}

int cudaGetDriverEntryPointByVersion(
    const char* name, void** function, unsigned version, unsigned long long flags, int* status) {
    *function = NULL;
    if (status) *status = 1;
    return NOT_SUPPORTED;
}

// The frontend looks for these when it is loaded; building a plan calls none of them.
#define REFUSES(name) int name(void) { return NOT_SUPPORTED; }
REFUSES(cudaDeviceSynchronize) REFUSES(cudaEventCreate) REFUSES(cudaEventDestroy)
REFUSES(cudaEventElapsedTime) REFUSES(cudaEventRecord) REFUSES(cudaEventSynchronize)
REFUSES(cudaFree) REFUSES(cudaLaunchKernel) REFUSES(cudaMalloc) REFUSES(cudaMemcpyAsync)
REFUSES(cudaMemsetAsync) REFUSES(cudaPointerGetAttributes) REFUSES(cudaStreamCreate)
REFUSES(cudaStreamDestroy) REFUSES(cudaStreamIsCapturing) REFUSES(cudaStreamSynchronize)
REFUSES(cudaStreamBeginCapture) REFUSES(cudaStreamEndCapture)
REFUSES(cudaLibraryLoadData) REFUSES(cudaLibraryGetKernel) REFUSES(cudaLibraryUnload)
REFUSES(cudaKernelSetAttributeForDevice)
REFUSES(cudaGraphAddChildGraphNode) REFUSES(cudaGraphAddMemcpyNode1D)
REFUSES(cudaGraphAddMemsetNode) REFUSES(cudaGraphChildGraphNodeGetGraph) REFUSES(cudaGraphCreate)
REFUSES(cudaGraphDestroy) REFUSES(cudaGraphGetNodes) REFUSES(cudaGraphGetRootNodes)
REFUSES(cudaGraphMemcpyNodeSetParams1D) REFUSES(cudaGraphMemsetNodeSetParams)
REFUSES(cudaGraphNodeGetDependentNodes)
