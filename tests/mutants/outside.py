"""Wrong lines: certificates, checkpoints."""

from tests.mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "diagnose/certify.py", "the bound leaves the backward residual out",
        "inverse * (left + turned + rounding)",
        "inverse * (turned + rounding)",
        "tests/diagnose/test_certificate.py::test_the_true_error_of_the_gradient_is_below_the_bound_and_near_the_estimate",
    ),
    Mutant(
        "diagnose/certify.py", "the bound leaves the point's error out",
        "inverse * (left + turned + rounding)",
        "inverse * (left + rounding)",
        "tests/diagnose/test_certificate.py::test_the_true_error_of_the_gradient_is_below_the_bound_and_near_the_estimate",
    ),
    Mutant(
        "diagnose/certify.py", "the Jacobian is that of the fixed point everywhere",
        "1 / (measured.smallest * (1 - h))",
        "1 / measured.smallest",
        "tests/diagnose/test_certificate.py::test_the_bound_is_the_error_itself_for_one_unknown_on_the_near_side",
    ),
    Mutant(
        "diagnose/certify.py", "any point is a reference",
        "known = (report.residual <= 0.1 * own.report.residual) | (report.residual <= rounding)",
        "known = report.residual < torch.inf",
        "tests/diagnose/test_certificate.py::test_where_no_fixed_point_is_found_no_error_is_known",
    ),
    Mutant(
        "diagnose/certify.py", "starts that arrive elsewhere are not counted",
        "elsewhere += found & far & converged",
        "pass",
        "tests/diagnose/test_certificate.py::test_several_fixed_points_are_found_by_the_starts",
    ),
    Mutant(
        "diagnose/certify.py", "a singular system is regular",
        "sound & (h < 0.5)",
        "h < 0.5",
        "tests/diagnose/test_certificate.py::test_a_singular_system_is_not_certified",
    ),
    Mutant(
        "diagnose/certificate.py", "coupled samples are certified",
        "& ~self.coupled",
        "",
        "tests/diagnose/test_certificate.py::test_a_sample_is_certified_where_nothing_speaks_against_it",
    ),
    Mutant(
        "diagnose/certificate.py", "errors beyond the tolerance are certified",
        "self.regular & (self.adjoint_error <= self.tolerance)",
        "self.regular",
        "tests/diagnose/test_certificate.py::test_a_sample_is_certified_where_nothing_speaks_against_it",
    ),
    Mutant(
        "diagnose/conditioning.py", "a solve that failed tells the smallest singular value",
        "torch.where(inverse.failed, torch.where(monotone > 0, monotone, 0), 1 / reciprocal)",
        "1 / reciprocal",
        "tests/diagnose/test_certificate.py::test_a_singular_system_is_not_certified",
    ),
    Mutant(
        "diagnose/conditioning.py", "a Ritz value is taken for an eigenvalue",
        "-(found.highest + found.play).double()",
        "-found.highest.double()",
        "tests/diagnose/test_certificate.py::test_a_badly_conditioned_convex_layer_is_told_from_a_broken_one",
    ),
    Mutant(
        "train/trust.py", "modules that are not trusted may be named",
        "if not _within(place, (*TRUSTED, *trust)):",
        "if False:",
        "tests/train/test_trust.py::test_what_a_configuration_names_is_not_run",
    ),
    Mutant(
        "train/trust.py", "classes may come from anywhere",
        "if not _within(home, (*TRUSTED, *trust)):",
        "if False:",
        "tests/train/test_trust.py::test_trust_is_for_modules_not_for_their_neighbours",
    ),
    Mutant(
        "train/trust.py", "functions may be called",
        "if not isinstance(found, type):",
        "if False:",
        "tests/train/test_trust.py::test_trust_is_for_modules_not_for_their_neighbours",
    ),
    Mutant(
        "train/trust.py", "any class may be built",
        "if not (_within(home, trust) or issubclass(found, KINDS) or is_dataclass(found)):",
        "if False:",
        "tests/train/test_trust.py::test_what_a_configuration_names_is_not_run",
    ),
    Mutant(
        "train/trust.py", "names that begin alike are trusted",
        'module.startswith(f"{each}.")',
        "module.startswith(each)",
        "tests/train/test_trust.py::test_trust_is_for_modules_not_for_their_neighbours",
    ),
    Mutant(
        "train/checkpoint.py", "checkpoints are unpickled",
        'weights_only=True)\n    except',
        'weights_only=False)\n    except',
        "tests/train/test_checkpoint.py tests/train/test_trust.py",
    ),
    Mutant(
        "train/checkpoint.py", "weights of another recipe are taken",
        "if entry and got != expected:",
        "if False:",
        "tests/train/test_checkpoint.py",
    ),
]  # fmt: skip
