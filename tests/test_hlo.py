"""What compiled text says is moved, against sums by hand; and texts that XLA makes."""

import jax
import jax.numpy as jnp
import pytest

from big_distill import hlo

KB = 1024  # of f32[256]


def program(*lines, computations=""):
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.Program(f"HloModule m\n\n{computations}\nENTRY %main (p: f32[256]) -> f32[256] {{\n{body}\n}}\n")


def test_operands_and_results_in_hbm_count_and_those_on_the_chip_do_not():
    read = program(
        "%p = f32[256]{0:T(256)} parameter(0)",
        '%a = f32[256]{0:T(256)S(1)} negate(%p), metadata={op_name="f(x) -> y"}',
        "%b = bf16[2,256]{1,0:T(8,128)(2,1)S(1)} broadcast(%a), dimensions={1}",
        '%c = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}) custom-call(%a, %p), custom_call_target="tpu_custom_call"',
        "%d = f32[256]{0} get-tuple-element(%c), index=1",
        '%e = f32[256]{0} custom-call(%d), custom_call_target="Sharding"',
        "ROOT %r = f32[256]{0:T(256)S(0)} add(%d, %a)",
    )
    moved = {move.instruction.name: move.bytes_ for move in read.moves}
    assert moved == {"a": KB, "c": 2 * KB, "r": 2 * KB}  # b moves within the chip, d and e nothing
    assert read.hbm_bytes == 5 * KB


def test_asynchronous_copies_count_their_side_in_hbm_once():
    read = program(
        "%p = f32[256]{0} parameter(0)",
        "%s = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%p)",
        "%d = f32[256]{0:S(1)} copy-done(%s)",
        "%t = ((f32[256]{0}), f32[64]{0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:64]}",
        "ROOT %e = f32[64]{0:S(1)} slice-done(%t)",
    )
    assert {move.instruction.name: move.bytes_ for move in read.moves} == {"s": KB, "t": KB // 4}


LOOP = """
%body (c: (s32[], f32[256])) -> (s32[], f32[256]) {
  %c = (s32[]{:T(128)}, f32[256]{0}) parameter(0)
  %i = s32[]{:T(128)S(1)} get-tuple-element(%c), index=0
  %x = f32[256]{0} get-tuple-element(%c), index=1
  %y = f32[256]{0} negate(%x)
  ROOT %t = (s32[], f32[256]{0}) tuple(%i, %y)
}

%condition (c: (s32[], f32[256])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[256]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %n = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
"""


def loop(computations=LOOP, attributes=""):
    return program(
        "%p = (s32[], f32[256]{0}) parameter(0)",
        f"ROOT %w = (s32[]{{:T(128)}}, f32[256]{{0}}) while(%p), condition=%condition, body=%body{attributes}",
        computations=computations,
    )


def test_a_loop_counts_as_often_as_it_runs():
    assert (loop().hbm_bytes, loop().unknown_loops) == (7 * 2 * KB, ())
    known = loop(attributes=', backend_config={"known_trip_count":{"n":"5"}}')
    assert (known.hbm_bytes, known.unknown_loops) == (5 * 2 * KB, ())


def test_a_loop_that_cannot_be_read_counts_once_and_is_named():
    strange = loop(LOOP.replace("direction=LT", "direction=NE"))
    assert (strange.hbm_bytes, strange.unknown_loops) == (2 * KB, ("w",))


FUSED = """
%inner (a: f32[4,256], i: s32[]) -> f32[1,256] {
  %a = f32[4,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %one = f32[1,256]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,256}
}

%sliced (stack: f32[4,256], whole: f32[1,256], i: s32[]) -> f32[4,256] {
  %stack = f32[4,256]{1,0} parameter(0)
  %whole = f32[1,256]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,256]{1,0} fusion(%stack, %i), kind=kLoop, calls=%inner
  %sum = f32[1,256]{1,0} add(%row, %whole)
  ROOT %new = f32[4,256]{1,0} dynamic-update-slice(%stack, %sum, %i, %i)
}
"""


def test_a_fusion_that_slices_reads_the_slice_and_in_place_writes_it():
    lines = [
        "%p = f32[4,256]{1,0} parameter(0)",
        "%q = f32[1,256]{1,0} parameter(1)",
        "%i = s32[]{:S(6)} parameter(2)",
        "ROOT %f = f32[4,256]{1,0} fusion(%p, %q, %i), kind=kLoop, calls=%sliced",
    ]
    assert program(*lines, computations=FUSED).hbm_bytes == 3 * KB  # a row read, the other operand, a row written
    read_elsewhere = FUSED.replace("add(%row, %whole)", "reduce(%stack, %row, %whole)")
    assert program(*lines, computations=read_elsewhere).hbm_bytes == (4 + 1 + 1) * KB


def test_a_conditional_counts_its_dearest_branch():
    branch = "%{0} (p: f32[256]) -> f32[256] {{\n  %p.{0} = f32[256]{{0}} parameter(0)\n  {1}\n}}\n"
    dear = "ROOT %n = f32[256]{0} negate(%p.dear)"
    cheap = "ROOT %m = f32[256]{0:S(1)} negate(%p.cheap)"
    read = program(
        "%b = pred[] parameter(0)",
        "%p = f32[256]{0} parameter(1)",
        "ROOT %c = f32[256]{0} conditional(%b, %p, %p), true_computation=%cheap, false_computation=%dear",
        computations=branch.format("cheap", cheap) + branch.format("dear", dear),
    )
    assert read.hbm_bytes == 2 * KB


def test_collectives_by_kind():
    read = program(
        "%p = f32[256]{0} parameter(0)",
        "%q = bf16[256]{0} parameter(1)",
        "%r = (f32[256]{0}, bf16[256]{0}) all-reduce(%p, %q), replica_groups={{0,1}}, to_apply=%add",
        "%s = f32[256]{0} all-reduce-start(%p), replica_groups={{0,1}}, to_apply=%add",
        "%d = f32[256]{0} all-reduce-done(%s)",
        "%g = (f32[256]{0}, f32[1024]{0}) all-gather-start(%d), dimensions={0}",
        "ROOT %e = f32[1024]{0} all-gather-done(%g)",
    )
    assert read.collective_bytes == {"all-reduce": KB + KB // 2 + KB, "all-gather": 4 * KB}


BESIDE = """
%begin (p: f32[256]) -> f32[1024] {
  %p = f32[256]{0} parameter(0)
  ROOT %g.0 = f32[1024]{0} all-gather(%p), channel_id=4, backend_config={"async_collective_fusion_config":{}}
}

%beside (q: f32[256], x: f32[256]) -> (f32[256], f32[1024]) {
  %q = f32[256]{0} parameter(0)
  %x = f32[256]{0} parameter(1)
  %y = f32[256]{0} negate(%x)
  %g.1 = f32[1024]{0} all-gather(%q), channel_id=4, backend_config={"async_collective_fusion_config":{}}
  ROOT %t = (f32[256]{0}, f32[1024]{0}) tuple(%y, %g.1)
}
"""


def test_a_collective_that_runs_beside_others_counts_once():
    """A TPU's text has it in the first fusion, and in each that computes meanwhile."""
    read = program(
        "%p = f32[256]{0} parameter(0)",
        "%a = f32[1024]{0} fusion(%p), kind=kCustom, calls=%begin",
        "%b = (f32[256]{0}, f32[1024]{0}) fusion(%p, %p), kind=kCustom, calls=%beside",
        "ROOT %c = f32[1024]{0} all-gather(%p), channel_id=5, dimensions={0}",
        computations=BESIDE,
    )
    assert read.collective_bytes == {"all-gather": 2 * 4 * KB}


def test_multiplications_by_dtype():
    read = program(
        "%x = s8[8,16,16,64]{3,2,1,0} parameter(0)",
        "%k = s8[3,3,64,32]{3,2,1,0} parameter(1)",
        "%g = bf16[8,8,8,32]{3,2,1,0} parameter(2)",
        "%l = bf16[3,3,32,64]{3,2,1,0} parameter(3)",
        "%a = f32[10,20]{1,0} parameter(4)",
        "%b = f32[30,20]{1,0} parameter(5)",
        "%conv = s32[8,8,8,32]{3,2,1,0} convolution(%x, %k), window={size=3x3 stride=2x2 pad=0_1x0_1}, "
        "dim_labels=b01f_01io->b01f",
        "%back = bf16[8,16,16,64]{3,2,1,0} convolution(%g, %l), window={size=3x3 pad=2_1x2_1 lhs_dilate=2x2}, "
        "dim_labels=b01f_01io->b01f",
        "ROOT %dot = f32[10,30]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
    )
    assert read.multiplications() == {
        "s8": 8 * 8 * 8 * 32 * 9 * 64,
        "bf16": 8 * 16 * 16 * 64 * 9 * 32 // 4,
        "f32": 10 * 30 * 20,
    }


def test_what_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.Program("HloModule m\n")


def test_a_compiled_loop():
    """XLA's own text, on the CPU: 6 products of [32, 64] x [64, 64], one of them counted by the compiler."""

    def f(w, xs):
        return jax.lax.scan(lambda c, x: (c + x @ w, None), jnp.zeros((32, 64)), xs)[0]

    shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((6, 32, 64), jnp.float32)
    compiled = jax.jit(f).lower(*shapes).compile()
    read = hlo.Program(compiled.as_text())
    assert read.unknown_loops == ()
    assert sum(read.multiplications().values()) == 6 * 32 * 64 * 64
    assert sum(read.multiplications(once=True).values()) == 32 * 64 * 64
    assert compiled.cost_analysis()["flops"] == pytest.approx(2 * 32 * 64 * 64, rel=0.05)
    # Each time w, a slice of xs and the sum are read, and the sum is written; whatever else is moved is smaller.
    least = 6 * 4 * (64 * 64 + 3 * 32 * 64)
    assert least <= read.hbm_bytes <= 2 * least


def test_a_compiled_collective():
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((64, 100), jnp.float32, sharding=rows)
    compiled = jax.jit(lambda x: x.sum(0), out_shardings=everywhere).lower(x).compile()
    assert hlo.Program(compiled.as_text()).collective_bytes == {"all-reduce": 400}
