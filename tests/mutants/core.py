"""Wrong lines: statuses, norms, problems."""

from tests.mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "core/status.py", "failures are never raised",
        "if not report.converged:", "if report.converged:",
        "tests/core/test_status.py",
    ),
    Mutant(
        "core/status.py", "one converged sample is enough",
        "(self.status == Status.CONVERGED).all()", "(self.status == Status.CONVERGED).any()",
        "tests/core/test_status.py",
    ),
    Mutant(
        "core/tree.py", "the smallest rounding of a nested state counts",
        "return max(torch.finfo(dtype).eps for dtype in self.dtypes)",
        "return min(torch.finfo(dtype).eps for dtype in self.dtypes)",
        "tests/core/test_tree.py",
    ),
    Mutant(
        "core/tree.py", "complex leaves lose their imaginary parts' place",
        "parts = [2 if dtype.is_complex else 1 for dtype in self.dtypes]", "parts = [1 for dtype in self.dtypes]",
        "tests/core/test_tree.py",
    ),
    Mutant(
        "core/problem.py", "the residual's sign",
        "return torch.sub(z, value, out=out)", "return torch.sub(value, z, out=out)",
        "tests/test_equations.py",
    ),
    Mutant(
        "core/problem.py", "writing into the state goes unseen",
        "if transforms.version(z) != version:", "if transforms.version(z) < version:",
        "tests/test_equations.py -k writes",
    ),
    Mutant(
        "core/explicit.py", "captured tensors are not looked for",
        "if transforms.active() or _has_graph(value):", "if transforms.active():",
        "tests/core/test_explicit.py",
    ),
    Mutant(
        "core/tree.py", "squares of tiny numbers are lost",
        "torch.where((top > 0) & top.isfinite(), top, 1)",
        "torch.ones_like(top)",
        "tests/solve/test_loop.py -k squares",
    ),
    Mutant(
        "core/status.py", "what is to be ignored is raised",
        'if on_failure == "ignore":',
        'if on_failure == "warn":',
        "tests/core/test_status.py",
    ),
    Mutant(
        "core/status.py", "backward failures are counted as forward ones",
        '"backward" if report.name.startswith("backward") else "forward"',
        '"forward"',
        "tests/core/test_failures.py",
    ),
    Mutant(
        "core/failures.py", "every failure is warned of",
        "if not failed or not (count.failures == 1 or", "if not failed or False and not (count.failures == 1 or",
        "tests/core/test_failures.py",
    ),
    Mutant(
        "core/failures.py", "the first backward failure is not told",
        "(count.failures == 1 or total", "(total",
        "tests/core/test_failures.py",
    ),
    Mutant(
        "core/failures.py", "solves that converge count as failures",
        "self.failures += failed",
        "self.failures += 1",
        "tests/core/test_failures.py",
    ),
    Mutant(
        "core/failures.py", "every line is the first to fail",
        "return _of_lines.setdefault(place, Failures())",
        "return Failures()",
        "tests/core/test_failures.py",
    ),
    Mutant(
        "core/independence.py", "samples are changed one way only",
        "for side in (0, 1):",
        "for side in (0,):",
        "tests/core/test_independence.py",
    ),
    Mutant(
        "core/independence.py", "what a sample does to itself counts as coupling",
        "torch.where(changed, 0, arrived)",
        "arrived",
        "tests/core/test_independence.py",
    ),
    Mutant(
        "core/independence.py", "couplings of any size are rounding",
        "PLAY = 1e3",
        "PLAY = 1e15",
        "tests/core/test_independence.py",
    ),
    Mutant(
        "core/independence.py", "rounding is a coupling",
        "PLAY = 1e3",
        "PLAY = 1e-3",
        "tests/core/test_independence.py",
    ),
    Mutant(
        "core/independence.py", "what is random counts as coupled",
        "or bool((norm(function(z) - before) > play).any())",
        "",
        "tests/core/test_independence.py",
    ),
    Mutant(
        "core/independence.py", "a look draws from the global random state",
        'torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype, device="cpu")',
        'torch.randn(shape, dtype=dtype, device="cpu")',
        "tests/core/test_independence.py",
    ),
    Mutant(
        "core/public.py", "a recorded example passes for a solve",
        "if tracing or torch.compiler.is_exporting():",
        "if False:",
        "tests/test_wrapping.py::test_exporters_are_refused_in_words",
    ),
    Mutant(
        "core/public.py", "scripting is not refused",
        "marks.__prepare_scriptable__ =",
        "marks.prepare =",
        "tests/test_wrapping.py::test_scripting_a_function_that_solves_is_refused_in_words",
    ),
    Mutant(
        "core/stand_in.py", "a solve's tensors are put into the module itself",
        'held["_parameters"].copy(), held["_buffers"].copy()\n            children',
        'held["_parameters"], held["_buffers"]\n            children',
        "tests/core/test_stand_in.py::test_nobody_else_sees_a_solve",
    ),
    Mutant(
        "core/stand_in.py", "a solve within a solve begins anew",
        'hasattr(type(module), "begin_solve") and MARK not in held',
        'hasattr(type(module), "begin_solve")',
        "tests/core/test_stand_in.py::test_a_solve_within_a_solve_begins_nothing",
    ),
    Mutant(
        "core/explicit.py", "a solve of a captured module within a solve begins anew",
        "begins and not evaluating()", "begins",
        "tests/core/test_stand_in.py -k begins_nothing",
    ),
    Mutant(
        "core/stand_in.py", "the mode is that of the moment",
        '{"training": module.training, MARK: True}',
        "{MARK: True}",
        "tests/core/test_stand_in.py::test_the_backward_pass_is_of_the_mode_that_was_solved_in",
    ),
    Mutant(
        "core/stand_in.py", "a solve's own tensors are handed back",
        "free = attributes or not isinstance(was, Tensor)",
        "free = True",
        "tests/core/test_stand_in.py::test_what_the_function_writes_is_handed_back",
    ),
    Mutant(
        "core/stand_in.py", "what the function writes is lost",
        "own[key] = exchanged(value, modules)",
        "pass",
        "tests/core/test_stand_in.py::test_what_the_function_writes_is_handed_back",
    ),
]  # fmt: skip
