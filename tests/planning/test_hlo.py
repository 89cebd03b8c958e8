"""Checks the bytes that compiled text moves against sums by hand, and reads compilers' texts for TPU, GPU and CPU."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
import slice_programs

from big_distill.planning import hlo

KB = 1024  # size of f32[256]


def module(*lines, computations=""):
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.Module(f"HloModule m\n\n{computations}\nENTRY %main (p: f32[256]) -> f32[256] {{\n{body}\n}}\n")


def test_operands_and_results_in_hbm_count_and_those_on_the_chip_do_not():
    read = module(
        "%p = f32[256]{0:T(256)} parameter(0)",
        '%a = f32[256]{0:T(256)S(1)} negate(%p), metadata={op_name="f(x) -> y"}',
        "%b = bf16[2,256]{1,0:T(8,128)(2,1)S(1)} broadcast(%a), dimensions={1}",
        '%c = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}) custom-call(%a, %p), custom_call_target="tpu_custom_call"',
        "%d = f32[256]{0} get-tuple-element(%c), index=1",
        '%e = f32[256]{0} custom-call(%d), custom_call_target="Sharding"',
        "ROOT %r = f32[256]{0:T(256)S(0)} add(%d, %a)",
    )
    moved = {move.instruction.name: move.bytes_ for move in read.moves}
    assert moved == {"a": KB, "c": 2 * KB, "r": 2 * KB}  # b moves within the chip, d and e move nothing
    assert read.hbm_bytes == 5 * KB


def test_asynchronous_copies_count_their_side_in_hbm_once():
    read = module(
        "%p = f32[256]{0} parameter(0)",
        "%s = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%p)",
        "%d = f32[256]{0:S(1)} copy-done(%s)",
        "%t = ((f32[256]{0}), f32[64]{0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:64]}",
        "ROOT %e = f32[64]{0:S(1)} slice-done(%t)",
    )
    assert {move.instruction.name: move.bytes_ for move in read.moves} == {"s": KB, "t": KB // 4}


@pytest.mark.parametrize(
    ("start", "moved"),
    [
        # Results hold the operand, then what is made, then contexts.
        ("(f32[256]{0}, f32[1024]{0}) all-gather-start(%p), dimensions={0}", KB + 4 * KB),
        ("((f32[256]{0}, f32[256]{0}), (f32[1024]{0}, f32[1024]{0:S(1)})) all-gather-start(%p, %q)", KB + KB + 4 * KB),
        ("(f32[256]{0}, f32[256]{0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p)", KB),
        ("(f32[256]{0}, f32[256]{0}, u32[], u32[]) collective-permute-start(%p)", 2 * KB + 8),
        ("((f32[256]{0}, s32[]), f32[64]{0}, s32[]{:S(2)}) dynamic-slice-start(%p, %i)", KB // 4 + KB // 4),
        ("((f32[256]{0}), f32[32]{0}, s32[]{:S(2)}) async-start(%p), calls=%scattered", KB + KB // 8),
        ("((f32[256]{0}), f32[64]{0:S(1)}, s32[]{:S(2)}) async-start(%p), calls=%cut", KB // 4),
        # An all-reduce's result holds only what is made.
        ("f32[256]{0} all-reduce-start(%p), to_apply=%add", 2 * KB),
        ("(f32[256]{0}, f32[256]{0:S(1)}) all-reduce-start(%p, %q), to_apply=%add", 2 * KB + KB),
    ],
)
def test_asynchronous_halves_move_their_operands_and_what_they_make(start, moved):
    called = """
%scattered (x: f32[256]) -> f32[32] {
  %x = f32[256]{0} parameter(0)
  ROOT %s = f32[32]{0} reduce-scatter(%x), dimensions={0}, to_apply=%add
}

%cut (x: f32[256]) -> f32[64] {
  %x = f32[256]{0} parameter(0)
  ROOT %s = f32[64]{0:S(1)} slice(%x), slice={[0:64]}
}
"""
    lines = ["%p = f32[256]{0} parameter(0)", "%q = f32[256]{0} parameter(1)", "%i = s32[]{:S(6)} parameter(2)"]
    read = module(*lines, f"ROOT %s = {start}", computations=called)
    assert read.hbm_bytes == moved


def test_a_slice_that_is_updated_or_gathered_alone_moves_alone():
    read = module(
        "%p = f32[64,256]{1,0} parameter(0)",
        "%q = f32[2,256]{1,0} parameter(1)",
        "%i = s32[]{:S(6)} parameter(2)",
        "%j = s32[3]{0:S(1)} parameter(3)",
        "%u = f32[64,256]{1,0} dynamic-update-slice(%p, %q, %i, %i)",
        "ROOT %g = f32[3,256]{1,0:S(1)} gather(%u, %j), slice_sizes={1,256}",
    )
    assert {move.instruction.name: move.bytes_ for move in read.moves} == {"u": 2 * 2 * KB, "g": 3 * KB}


LOOP = """
%body (c: (s32[], f32[256])) -> (s32[], f32[256]) {
  %c = (s32[]{:T(128)}, f32[256]{0}) parameter(0)
  %i = s32[]{:T(128)S(1)} get-tuple-element(%c), index=0
  %x = f32[256]{0} get-tuple-element(%c), index=1
  %y = f32[256]{0} negate(%x)
  %one = s32[]{:T(128)S(1)} constant(1)
  %next = s32[]{:T(128)S(1)} add(%i, %one)
  ROOT %t = (s32[], f32[256]{0}) tuple(%next, %y)
}

%condition (c: (s32[], f32[256])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[256]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  %n = s32[]{:T(128)} constant(7)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
"""


def loop(computations=LOOP, attributes="", start="constant(0)"):
    return module(
        "%x = f32[256]{0} parameter(0)",
        "%n = s32[]{:T(128)S(1)} parameter(1)",
        f"%z = s32[]{{:T(128)S(1)}} {start}",
        "%i = s32[]{:T(128)S(1)} copy(%z)",
        "%p = (s32[]{:T(128)S(1)}, f32[256]{0}) tuple(%i, %x)",
        f"ROOT %w = (s32[]{{:T(128)}}, f32[256]{{0}}) while(%p), condition=%condition, body=%body{attributes}",
        computations=computations,
    )


def test_a_loop_counts_as_often_as_it_runs():
    assert (loop().hbm_bytes, loop().unknown_loops) == (7 * 2 * KB, ())
    known = loop(attributes=', backend_config={"known_trip_count":{"n":"5"}}')
    assert (known.hbm_bytes, known.unknown_loops) == (5 * 2 * KB, ())


@pytest.mark.parametrize(
    ("old", "new", "start", "times"),
    [
        ("constant(7)", "constant(7)", "constant(3)", 4),
        ("constant(1)", "constant(2)", "constant(0)", 4),
        ("add(%i, %one)", "add(%one, %i)", "constant(0)", 7),
        ("constant(7)", "constant(7)", "constant(9)", 0),
        ("constant(7)", "constant(7)", "negate(%n)", None),  # begin unknown
        ("constant(7)", "get-tuple-element(%c), index=1", "constant(0)", None),  # end unknown
        ("%one = s32[]{:T(128)S(1)} constant(1)", "%one = s32[]{:T(128)S(1)} negate(%i)", "constant(0)", None),  # steps
        ("constant(1)", "constant(-1)", "constant(0)", None),
        ("add(%i, %one)", "multiply(%i, %one)", "constant(1)", None),
        ("add(%i, %one)", "add(%one, %one)", "constant(0)", None),
        ("compare(%i, %n)", "compare(%n, %i)", "constant(0)", None),
        ("direction=LT", "direction=NE", "constant(0)", None),
    ],
)
def test_a_loop_counts_from_its_start_by_its_step(old, new, start, times):
    assert old in LOOP
    read = loop(LOOP.replace(old, new), start=start)
    moved = sum(move.bytes_ for move in read.moves if move.instruction.name == "y")
    assert moved == 2 * KB * (1 if times is None else times)
    assert read.unknown_loops == (("w",) if times is None else ())


def test_what_an_outer_loop_leaves_as_it_is_is_still_known():
    """The inner loop begins at one element of the outer loop's state, and ends at another."""
    nested = """
%outer_body (c: (s32[], f32[256], s32[])) -> (s32[], f32[256], s32[]) {
  %c = (s32[]{:T(128)}, f32[256]{0}, s32[]{:S(1)}) parameter(0)
  %j = s32[]{:S(1)} get-tuple-element(%c), index=0
  %x = f32[256]{0} get-tuple-element(%c), index=1
  %k = s32[]{:S(1)} get-tuple-element(%c), index=2
  %p = (s32[]{:S(1)}, f32[256]{0}) tuple(%k, %x)
  %w = (s32[]{:S(1)}, f32[256]{0}) while(%p), condition=%condition, body=%body
  %z = f32[256]{0} get-tuple-element(%w), index=1
  %one = s32[]{:S(1)} constant(1)
  %next = s32[]{:S(1)} add(%j, %one)
  ROOT %t = (s32[], f32[256]{0}, s32[]) tuple(%next, %z, %k)
}

%outer_condition (c: (s32[], f32[256], s32[])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[256]{0}, s32[]) parameter(0)
  %j = s32[]{:S(1)} get-tuple-element(%c), index=0
  %n = s32[]{:S(1)} constant(10)
  ROOT %lt = pred[]{:S(1)} compare(%j, %n), direction=LT
}
"""
    lines = [
        "%x = f32[256]{0} parameter(0)",
        "%two = s32[]{:S(1)} constant(2)",
        "%p = (s32[], f32[256]{0}, s32[]) tuple(%two, %x, %two)",
        "ROOT %w = (s32[], f32[256]{0}, s32[]) while(%p), condition=%outer_condition, body=%outer_body",
    ]
    read = module(*lines, computations=LOOP + nested)
    assert (read.unknown_loops, read.moves[0].times) == ((), 8 * 5)
    changed = module(*lines, computations=LOOP + nested.replace("tuple(%next, %z, %k)", "tuple(%next, %z, %j)"))
    assert changed.unknown_loops == ("w",)


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
    assert module(*lines, computations=FUSED).hbm_bytes == 3 * KB  # a row read, the other operand, a row written
    read_elsewhere = FUSED.replace("add(%row, %whole)", "reduce(%stack, %row, %whole)")
    assert module(*lines, computations=read_elsewhere).hbm_bytes == (4 + 1 + 1) * KB


def test_a_fusion_that_gathers_reads_what_it_gathers():
    gathering = """
%rows (stack: f32[64,256], which: s32[3]) -> f32[3,256] {
  %stack = f32[64,256]{1,0} parameter(0)
  %which = s32[3]{0} parameter(1)
  ROOT %g = f32[3,256]{1,0} gather(%stack, %which), slice_sizes={1,256}
}
"""
    lines = ["%p = f32[64,256]{1,0} parameter(0)", "%i = s32[3]{0:S(1)} parameter(1)"]
    fused = "ROOT %f = f32[3,256]{1,0:S(1)} fusion(%p, %i), kind=kCustom, calls=%rows"
    assert module(*lines, fused, computations=gathering).hbm_bytes == 3 * KB


def test_a_conditional_counts_its_dearest_branch():
    branch = "%{0} (p: f32[256]) -> f32[256] {{\n  %p.{0} = f32[256]{{0}} parameter(0)\n  {1}\n}}\n"
    dear = "ROOT %n = f32[256]{0} negate(%p.dear)"
    cheap = "ROOT %m = f32[256]{0:S(1)} negate(%p.cheap)"
    read = module(
        "%b = pred[] parameter(0)",
        "%p = f32[256]{0} parameter(1)",
        "ROOT %c = f32[256]{0} conditional(%b, %p, %p), true_computation=%cheap, false_computation=%dear",
        computations=branch.format("cheap", cheap) + branch.format("dear", dear),
    )
    assert read.hbm_bytes == 2 * KB


def test_collectives_by_kind():
    read = module(
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
    """A TPU's text has the collective in the first fusion, and in each that computes meanwhile."""
    read = module(
        "%p = f32[256]{0} parameter(0)",
        "%a = f32[1024]{0} fusion(%p), kind=kCustom, calls=%begin",
        "%b = (f32[256]{0}, f32[1024]{0}) fusion(%p, %p), kind=kCustom, calls=%beside",
        "ROOT %c = f32[1024]{0} all-gather(%p), channel_id=5, dimensions={0}",
        computations=BESIDE,
    )
    assert read.collective_bytes == {"all-gather": 2 * 4 * KB}


@pytest.mark.parametrize(
    ("collective", "sent"),
    [
        ("f32[256]{0} all-reduce(%p), replica_groups={{0,1,2,3},{4,5,6,7}}", 2 * KB * 3 / 4),
        ("f32[256]{0} all-reduce(%p), replica_groups=[4,2]<=[8]", 2 * KB / 2),
        ("f32[256]{0} all-reduce(%p), replica_groups=[2,4]<=[4,2]T(1,0)", 2 * KB * 3 / 4),
        ("f32[256]{0} all-reduce(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}", 2 * KB * 3 / 4),
        ("f32[256]{0} all-reduce(%p), replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 2 * KB * 7 / 8),
        ("f32[256]{0} all-reduce(%p), replica_groups={}", 2 * KB * 7 / 8),
        ("f32[2048]{0} all-gather(%p), dimensions={0}", 8 * KB * 7 / 8),
        ("f32[32]{0} reduce-scatter(%p), dimensions={0}", KB * 7 / 8),
        ("f32[256]{0} all-to-all(%p), dimensions={0}", KB * 7 / 8),
        ("f32[256]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}", KB),
    ],
)
def test_what_a_ring_sends(collective, sent):
    text = f"%p = f32[256]{{0}} parameter(0)\n  ROOT %c = {collective}\n"
    read = hlo.Module(f"HloModule m, num_partitions=8\n\nENTRY %main (p: f32[256]) -> f32[256] {{\n  {text}}}\n")
    assert read.sent_bytes == sent


@pytest.mark.parametrize("more", [[], ["%n = f32[256]{0} negate(%a)"]], ids=["once", "twice"])
def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter_in_a_fusion(more):
    """Inside a fusion it counts as a reduce-scatter; elsewhere all of it is reduced, and then a slice is taken."""
    lines = [
        "%p = f32[256]{0} parameter(0)",
        "%i = s32[]{:S(6)} parameter(1)",
        "%a = f32[256]{0} all-reduce(%p), replica_groups={{0,1,2,3}}",
        "ROOT %s = f32[64]{0} dynamic-slice(%a, %i), dynamic_slice_sizes={64}",
        *more,
    ]
    inner = "%inner (p: f32[256], i: s32[]) -> f32[64] {\n  " + "\n  ".join(lines) + "\n}\n"
    arguments = "%x = f32[256]{0} parameter(0)", "%j = s32[]{:S(6)} parameter(1)"
    fused = module(*arguments, "ROOT %f = f32[64]{0} fusion(%x, %j), kind=kCustom, calls=%inner", computations=inner)
    called = module(*arguments, "ROOT %c = f32[64]{0} call(%x, %j), to_apply=%inner", computations=inner)
    whole = {"all-reduce": KB}, 2 * KB * 3 / 4
    assert (fused.collective_bytes, fused.sent_bytes) == (whole if more else ({"reduce-scatter": KB}, KB * 3 / 4))
    for read in (module(*lines), called):
        assert (read.collective_bytes, read.sent_bytes) == whole


def test_multiplications_by_dtype():
    read = module(
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


def test_multiplications_of_the_libraries_of_a_gpu():
    read = module(
        "%x = bf16[8,16,16,64]{3,2,1,0} parameter(0)",
        "%k = bf16[32,3,3,64]{3,2,1,0} parameter(1)",
        "%g = bf16[8,8,8,32]{3,2,1,0} parameter(2)",
        "%a = f32[10,20]{1,0} parameter(3)",
        "%b = f32[20,30]{1,0} parameter(4)",
        "%f = (bf16[8,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 stride=2x2}, "
        'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"',
        "%i = (bf16[8,16,16,64]{3,2,1,0}, u8[0]{0}) custom-call(%g, %k), window={size=3x3 stride=2x2}, "
        'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"',
        "%w = (bf16[32,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %g), window={size=3x3 stride=2x2}, "
        'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"',
        'ROOT %d = (f32[10,30]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
        'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
    )
    convolution = 8 * 8 * 8 * 32 * 9 * 64
    assert read.multiplications() == {"bf16": 3 * convolution, "f32": 10 * 30 * 20}
    moved = {move.instruction.name: move.bytes_ for move in read.moves}
    x, k, g = 2 * 8 * 16 * 16 * 64, 2 * 9 * 64 * 32, 2 * 8 * 8 * 8 * 32
    assert moved == {"f": x + k + g, "i": x + k + g, "w": x + k + g, "d": 4 * (200 + 600 + 300) + 64}


@pytest.fixture(params=["as it was written", "as it is written here"])
def text_of(request):
    """Returns a function that gives the text of a program of `slice_programs`."""
    if "here" in request.param:
        if importlib.util.find_spec("libtpu") is None:
            pytest.skip("needs libtpu")
        return slice_programs.compile_text
    return slice_programs.text_of


def test_loops_in_a_loop_on_a_tpu(text_of):
    read = hlo.Module(text_of("scans"))
    assert read.unknown_loops == ()
    assert sum(read.multiplications().values()) == 9 * 5 * 64 * 512 * 512
    assert sum(read.multiplications(once=True).values()) == 64 * 512 * 512
    arrays = 4 * (512 * 512 + 9 * 64 * 512 + 64 * 512)  # each is read or written once; what is between stays on chip
    assert arrays <= read.hbm_bytes <= arrays + KB


def test_rows_for_other_chips_of_a_tpu(text_of):
    read = hlo.Module(text_of("permuted"))
    row = 4 * 4096
    assert (read.collective_bytes, read.sent_bytes) == ({"collective-permute": 9 * row}, 9 * row)
    assert read.hbm_bytes == 2 * 2 * 8 * row  # both read all rows and write all


def test_sharded_weights_on_a_tpu():
    read = hlo.Module(slice_programs.text_of("sharded"))  # takes long to compile
    whole = 2 * 4096 * 4096
    assert read.unknown_loops == ()
    assert sum(read.multiplications().values()) == (4 + 4 + 3) * 512 * 4096 * 4096
    assert read.collective_bytes["reduce-scatter"] == 4 * whole and "all-reduce" not in read.collective_bytes
    gathered = read.collective_bytes["all-gather"]
    assert gathered == 4 * whole and read.sent_bytes == (gathered + 4 * whole) * 7 / 8
    moved = (4 * whole // 8 + whole // 8) + 4 * whole // 8  # the least: weights and images are read, weights written
    assert moved < read.hbm_bytes < 2 * gathered


def test_counts_of_texts_that_do_not_change():
    """Another program, which loads nothing of this one, counted these bytes of HBM in the same texts."""
    counts = {name: hlo.Module(slice_programs.text_of(name)).hbm_bytes for name in ("scans", "permuted", "sharded")}
    assert counts == {"scans": 2_360_028, "permuted": 524_288, "sharded": 239_075_328}


def test_convolutions_on_a_gpu():
    read = hlo.Module(slice_programs.text_of("convolutions"))
    first, second, last = 64 * 32 * 32 * 64 * 9 * 32, 64 * 32 * 32 * 64 * 9 * 64, 64 * 64 * 512
    assert read.multiplications() == {"bf16": 2 * first + 3 * second + 3 * last}  # no gradient of the images
    gradients = 2 * (9 * 32 * 64 + 9 * 64 * 64 + 64 * 512)
    assert (read.collective_bytes, read.sent_bytes) == ({"all-reduce": gradients}, 2 * gradients * 7 / 8)


def test_what_is_no_hlo_is_an_error():
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.Module("HloModule m\n")


def test_a_compiled_loop():
    """XLA's own text for the CPU has 6 products of [32, 64] x [64, 64]; the compiler counts one of them."""

    def f(w, xs):
        return jax.lax.scan(lambda c, x: (c + x @ w, None), jnp.zeros((32, 64)), xs)[0]

    shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((6, 32, 64), jnp.float32)
    compiled = jax.jit(f).lower(*shapes).compile()
    read = hlo.Module(compiled.as_text())
    assert read.unknown_loops == ()
    assert sum(read.multiplications().values()) == 6 * 32 * 64 * 64
    assert sum(read.multiplications(once=True).values()) == 32 * 64 * 64
    assert compiled.cost_analysis()["flops"] == pytest.approx(2 * 32 * 64 * 64, rel=0.05)
    # Each turn reads w, a slice of xs and the sum, and writes the sum; all other moves are smaller.
    least = 6 * 4 * (64 * 64 + 3 * 32 * 64)
    assert least <= read.hbm_bytes <= 2 * least


def test_a_compiled_collective():
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((64, 100), jnp.float32, sharding=rows)
    compiled = jax.jit(lambda x: x.sum(0), out_shardings=everywhere).lower(x).compile()
    assert hlo.Module(compiled.as_text()).collective_bytes == {"all-reduce": 400}
