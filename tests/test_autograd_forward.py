"""Forward mode: dual tensors over every operation, levels, nesting, in-place changes."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd import forward_ad as fw
from distgrad.autograd.forward_ad import jvp_arrays
from distgrad.errors import ArgumentError, GradError
from distgrad.func import grad, jvp
from distgrad.tensor import Tensor, wrap
from distgrad.testing.operations import Case, cases

CASES = [pytest.param(n, i, id=f"{n}-{i}") for n, i in cases()]


def _dual(array, direction):
    if isinstance(array, list):
        return [_dual(a, None if direction is None else d)
                for a, d in zip(array, direction or array, strict=True)]  # fmt: skip
    if array is None:
        return None
    primal = wrap(np.array(array))
    return primal if direction is None else fw.make_dual(primal, wrap(np.asarray(direction)))


def _tangents(case, directions):
    """Return the outputs of a case on duals with these directions, as primals and tangents."""
    names = [o.name for o in case.op.operands]
    with fw.dual_level():
        duals = [_dual(a, d) for a, d in zip(case.arrays, directions, strict=True)]
        out = case.op.function(**dict(zip(names, duals, strict=True)), **case.options)
        outs = [out] if isinstance(out, Tensor) else list(out)
        return [fw.unpack_dual(o) for o in outs]


def _array(tangent, like):
    return np.zeros(like.shape) if tangent is None else tangent.array


@pytest.mark.parametrize(("name", "index"), CASES)
def test_dual_tensors_carry_the_directional_derivative(name, index):
    case = Case(name, index)
    if not any(case.differentiable):
        return
    directions = case.directions(4)
    parts, plain = _tangents(case, directions), case.call(case.tensors())
    tangents = []
    for part, want in zip(parts, plain, strict=True):
        np.testing.assert_array_equal(part.primal.array, want.array)
        assert (part.tangent is not None) <= want.requires_grad
        if want.requires_grad:
            tangents.append(_array(part.tangent, want.array))
    if not tangents:
        return
    along = [d if d is not None or case.op.kind != "linear" else a
             for d, a in zip(directions, case.arrays, strict=True)]  # fmt: skip
    want = jvp_arrays(case.op, case.arrays, along, dict(case.options))
    for t, w in zip(tangents, want if isinstance(want, list) else [want], strict=True):
        np.testing.assert_allclose(t, 0 if w is None else w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_tangents_of_single_operands_add_up(name, index):
    case = Case(name, index)
    if sum(case.differentiable) < 2:
        return
    directions = case.directions(4)
    whole = _tangents(case, directions)
    total = [0.0] * len(whole)
    for i, direction in enumerate(directions):
        if direction is None:
            continue
        alone = [direction if j == i else None for j in range(len(directions))]
        for place, part in enumerate(_tangents(case, alone)):
            if part.tangent is not None:
                assert part.tangent.array.shape == part.primal.array.shape
            total[place] = total[place] + _array(part.tangent, part.primal.array)
    for part, want in zip(whole, total, strict=True):
        got = _array(part.tangent, part.primal.array)
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


def test_levels_and_their_ends():
    x = dg.tensor([1.0, 2.0])
    with fw.dual_level() as level:
        assert level == 0
        y = fw.make_dual(x, dg.ones(2))
        z = y * y
        assert fw.unpack_dual(z).tangent.tolist() == [2.0, 4.0]
        assert fw.unpack_dual(x).tangent is None
        assert "tangent=tensor([2., 4.])" in repr(z)
        assert fw.unpack_dual(z.detach()).tangent is None
        assert fw.unpack_dual(y > 1).tangent is None and (y > 1).tolist() == [False, True]
        assert z.sum().item() == 5.0 and z.numpy().tolist() == [1.0, 4.0]
        with pytest.raises(GradError, match="Nested forward mode"):
            fw.enter_dual_level()
    assert repr(z) == "tensor([1., 4.])"
    assert (z + 1).tolist() == [2.0, 5.0]
    assert fw.unpack_dual(z).tangent is None


def test_mistakes_are_refused():
    x = dg.ones(2)
    with pytest.raises(GradError, match="no level exists"):
        fw.make_dual(x, x)
    with pytest.raises(GradError, match="no level"):
        fw.exit_dual_level()
    with fw.dual_level():
        d = fw.make_dual(x, x)
        with pytest.raises(GradError, match="already has a forward gradient"):
            fw.make_dual(d, x)
        with pytest.raises(GradError, match="itself has a forward gradient"):
            fw.make_dual(x, d)
        with pytest.raises(GradError, match=r"size \[2\].*size \[3\]"):
            fw.make_dual(x, dg.ones(3))
        with pytest.raises(ArgumentError, match="Expected primal to be floating point"):
            fw.make_dual(dg.tensor([1]), x)


def test_changes_in_place_carry_tangents():
    with fw.dual_level():
        d = fw.make_dual(dg.tensor([1.0, 2.0]), dg.tensor([1.0, 10.0]))
        plain = dg.zeros(3)
        view = plain[1:]
        view.copy_(d)
        assert fw.unpack_dual(plain).tangent.tolist() == [0.0, 1.0, 10.0]
        plain.mul_(2.0)
        assert fw.unpack_dual(view).tangent.tolist() == [2.0, 20.0]
        plain[0] = d[1] * d[1]
        assert fw.unpack_dual(plain).tangent.tolist() == [40.0, 2.0, 20.0]
        plain.zero_()
        assert fw.unpack_dual(plain).tangent.tolist() == [0.0, 0.0, 0.0]


def test_reverse_over_forward_and_forward_over_reverse():
    x = dg.tensor([1.0, 2.0], requires_grad=True)
    with fw.dual_level():
        d = fw.make_dual(x, dg.ones(2))
        assert d.requires_grad and not d.is_leaf
        out = (d**3).sum()
        (over,) = dg.autograd.grad(out, x)
        assert fw.unpack_dual(over).primal.tolist() == [3.0, 12.0]
        assert fw.unpack_dual(over).tangent.tolist() == [6.0, 12.0]
        tangent = fw.unpack_dual((d**3).sum()).tangent
        assert dg.autograd.grad(tangent, x)[0].tolist() == [6.0, 12.0]
        (d * 2).sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_nested_levels_do_not_mix():
    def inner(x):
        return jvp(lambda y: x * y, (dg.tensor(2.0),), (dg.tensor(1.0),))[1]

    assert jvp(inner, (dg.tensor(5.0),), (dg.tensor(1.0),))[1].item() == 1.0
    assert grad(lambda x: x * grad(lambda y: x * y)(dg.tensor(1.0)))(dg.tensor(3.0)).item() == 6.0
    cube = jvp(lambda x: jvp(lambda y: y**3, (x,), (dg.ones(()),))[1], (dg.tensor(2.0),),
               (dg.ones(()),))  # fmt: skip
    assert [t.item() for t in cube] == [12.0, 12.0]


# ---------------------------------------------------------------------- complex numbers
@pytest.mark.parametrize("name", ["abs", "sgn", "angle", "exp", "real", "conj"])
def test_tangents_of_functions_that_are_not_holomorphic(name):
    rng = np.random.default_rng(0)
    z, t = (rng.standard_normal(4) + 1j * rng.standard_normal(4) for _ in "zt")
    with fw.dual_level():
        got = fw.unpack_dual(getattr(dg, name)(fw.make_dual(dg.tensor(z), dg.tensor(t)))).tangent
    step = 1e-6
    up, down = (getattr(dg, name)(dg.tensor(z + s * t)).numpy() for s in (step, -step))
    np.testing.assert_allclose(got.numpy(), (up - down) / (2 * step), 1e-6, 1e-8)
    assert got.is_complex() == np.iscomplexobj(up)


# ---------------------------------------------------------------------- the level and its tensors
def test_a_dual_tensor_shares_memory_and_version_with_its_primal():
    x = dg.rand(2)
    with fw.dual_level():
        dual = fw.make_dual(x, dg.ones(2))
        x.add_(1)
        assert dual.data_ptr() == x.data_ptr() and dual._version == x._version == 1
        assert fw.unpack_dual(dual).primal._version == 1


def test_detach_and_data_leave_the_tangent_behind():
    with fw.dual_level():
        dual = fw.make_dual(dg.ones(2), dg.ones(2))
        other = dual.clone()
        other.detach_()
        assert all(fw.unpack_dual(t).tangent is None for t in (dual.detach(), dual.data, other))


def test_a_tangent_of_another_layout_is_copied():
    with fw.dual_level():
        dual = fw.make_dual(dg.rand(2, 3), dg.ones(()).expand(2, 3))
        dual.mul_(2)
        assert fw.unpack_dual(dual).tangent.tolist() == [[2.0] * 3] * 2


def test_tangents_can_be_switched_off():
    with fw.dual_level():
        dual = fw.make_dual(dg.ones(2), dg.ones(2))
        with fw._set_fwd_grad_enabled(False):
            assert not fw._is_fwd_grad_enabled()
            assert fw.unpack_dual(dual * 2).tangent is None
        assert fw.unpack_dual(dual * 2).tangent is not None


def test_out_is_refused():
    with fw.dual_level():
        dual = fw.make_dual(dg.ones(2), dg.ones(2))
        for operands, out in (((dual, dual), dg.ones(2)), ((dg.ones(2), dg.ones(2)), dual)):
            with pytest.raises(RuntimeError, match="out= function"):
                dg.add(*operands, out=out)


def test_jvp_of_a_changed_input_must_change_its_tangent():
    class Double(dg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

        @staticmethod
        def jvp(ctx, t):
            return t * 2

    with fw.dual_level():
        dual = fw.make_dual(dg.ones(2), dg.ones(2)).clone()
        with pytest.raises(RuntimeError, match="modify the corresponding gradient inplace"):
            Double.apply(dual)
