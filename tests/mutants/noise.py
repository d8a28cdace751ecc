"""Wrong lines: Brownian paths."""

from tests.mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "sde/normals.py", "shifts keep the sign: half of the words are lost",
        "spare.bitwise_and_((1 << (64 - shift)) - 1)", "spare",
        "tests/sde/test_normals.py::test_the_integers_are_those_of_splitmix64",
    ),
    Mutant(
        "sde/normals.py", "zero is hashed to zero: two seeds share a path",
        "return hash_(words + signed(GOLDEN), torch.empty_like(words))",
        "return hash_(words.clone(), torch.empty_like(words))",
        "tests/sde/test_normals.py::test_the_integers_are_those_of_splitmix64",
    ),
    Mutant(
        "sde/normals.py", "a uniform number of zero",
        ".add_(0.5).abs_().mul_(2.0**-31)", ".add_(2.0**31).mul_(2.0**-32)",
        "tests/sde/test_normals.py::test_the_most_extreme_words_give_finite_normals",
    ),
    Mutant(
        "sde/normals.py", "half a turn",
        "mul_(math.tau * 2.0**-32)", "mul_(math.pi * 2.0**-32)",
        "tests/sde/test_normals.py::test_the_law_is_normal",
    ),
    Mutant(
        "sde/normals.py", "purposes share their normals",
        "return hash_of(numbers * signed(GOLDEN) + hashed(purpose))", "return hash_of(numbers * signed(GOLDEN))",
        "tests/sde/test_normals.py::test_nothing_is_correlated",
    ),
    Mutant(
        "sde/methods/reversible_heun.py", "a sample that stands still is reflected",
        "z = reflected if len(h) == 1 else torch.where(h > 0, reflected, z)", "z = reflected",
        "tests/sde/test_reversible.py::test_samples_that_stand_still_are_undone_as_if_alone",
    ),
    Mutant(
        "sde/draws.py", "the memory format of images changes the path",
        "self.layout = Layout(_contiguous(like))", "self.layout = Layout(like)",
        "tests/sde/test_brownian.py::test_the_format_of_images_changes_no_path",
    ),
    Mutant(
        "sde/seeds.py", "samples depend on the size of the batch",
        "torch.arange(batch, device=device) * signed(GOLDEN)",
        "(torch.arange(batch, device=device) - batch) * signed(GOLDEN)",
        "tests/sde/test_brownian.py::test_a_sample_is_the_same_in_any_batch",
    ),
    Mutant(
        "sde/seeds.py", "processes repeat each other's noise",
        "return hashed(seed + rank * GOLDEN) & (2**63 - 1) if rank else seed", "return seed",
        "tests/sde/test_seeds.py::test_processes_that_are_seeded_alike_differ",
    ),
    Mutant(
        "sde/seeds.py", "a number of seeds that is not the batch's is not seen",
        "if len(seed) != batch:", "if False:",
        "tests/sde/test_seeds.py -k another_number_of_seeds",
    ),
    Mutant(
        "sde/steps.py", "the second of two steps is the first again",
        "room.view(end - begin, 2, -1).unbind(1)", "room.view(end - begin, 2, -1).flip(1).unbind(1)",
        "tests/sde/test_normals.py::test_kernels_get_words_and_make_the_same_normals_for_every_step",
    ),
    Mutant(
        "sde/steps.py", "pieces of a large batch are misplaced",
        "normals.pair(some, words,", "normals.pair(self._cells[: shape[1]], words,",
        "tests/sde/test_brownian.py::test_large_batches_are_made_in_pieces_that_nobody_notices",
    ),
    Mutant(
        "sde/steps.py", "odd steps of a finer path begin at the even one",
        "return parts.each(lambda steps: steps[first - 2 * begin :][:count])",
        "return parts.each(lambda steps: steps[:count])",
        "tests/sde/test_brownian.py::test_a_finer_path_is_the_same_path",
    ),
    Mutant(
        "sde/brownian.py", "a length near a level is taken for it",
        "<= 1e-6 * h", "<= 1e6 * h",
        "tests/sde/test_brownian.py::test_a_length_that_is_no_level_and_what_helps",
    ),
    Mutant(
        "sde/brownian.py", "the steps that are kept are those of another level",
        "kept is None or kept.level != level or not", "kept is None or not",
        "tests/sde/test_brownian.py::test_a_finer_path_is_the_same_path",
    ),
    Mutant(
        "sde/bridge.py", "two steps enclose nothing between them",
        "first.A + second.A + turned - turned.mT", "first.A + second.A",
        "tests/sde/test_bridge.py::test_areas_of_many_parts_have_the_law_of_one",
    ),
    Mutant(
        "sde/ahead.py", "a state that is not finite passes among steps that nobody looks at",
        "and not is_finite(y.detach()):", "and False:",
        "tests/sde/test_gradients.py::test_one_graph_keeps_samples_apart",
    ),
    Mutant(
        "sde/bridge.py", "the area is not used in the bridge",
        "(6 * p * q, H)", "(0 * p * q, H)",
        "tests/sde/test_bridge.py::test_the_parts_have_the_law_of_paths",
    ),
    Mutant(
        "sde/bridge.py", "the area of the first part has the sign of the rest's",
        "(side * q, z)", "(-side * q, z)",
        "tests/sde/test_bridge.py::test_the_parts_make_the_whole",
    ),
    Mutant(
        "sde/bridge.py", "the peer's constant of the space-space area",
        "h**2 / 20", "h**2 / 50",
        "tests/sde/test_bridge.py::test_areas_have_the_mean_and_variance_of_those_of_a_fine_path "
        "tests/sde/test_bridge.py::test_areas_of_steps",
    ),
    Mutant(
        "sde/stack.py", "what is left of a rejected step is forgotten",
        "self._put(running & splits, top, ends, rest)", "self._height -= running & splits",
        "tests/sde/test_stack.py::test_what_is_tried_adds_up_to_what_was_drawn",
    ),
    Mutant(
        "sde/stack.py", "a rejected step is drawn anew",
        "fresh = self._height == 0", "fresh = self._height >= 0",
        "tests/sde/test_stack.py::test_what_is_tried_adds_up_to_what_was_drawn",
    ),
    Mutant(
        "sde/stack.py", "a full stack drops what is left",
        "splits &= ~full", "pass",
        "tests/sde/test_stack.py::test_a_full_stack_says_so",
    ),
    Mutant(
        "sde/stack.py", "samples that wait draw, too",
        "self._attempt += running", "self._attempt += 1",
        "tests/sde/test_stack.py::test_samples_that_do_not_go_on_keep_what_they_have",
    ),
    Mutant(
        "sde/stack.py", "what is over is written to the top, for samples that do not go on, too",
        "rows = self._at(torch.where(samples, height, self.depth))", "rows = self._at(height.clamp_min(0))",
        "tests/sde/test_stack.py::test_samples_that_do_not_go_on_keep_what_they_have "
        "tests/sde/test_stack.py::test_what_is_tried_adds_up_to_what_was_drawn",
    ),
    Mutant(
        "sde/tree.py", "intervals within a cell pass",
        "if bool((h < self.source.cell * (1 - 1e-9)).any()):", "if False:",
        "tests/sde/test_tree.py::test_intervals_within_a_cell_are_refused_and_what_helps",
    ),
    Mutant(
        "sde/tree.py", "both halves of a cell are the same node",
        "node = 2 * node + later.squeeze(-1)", "node = 2 * node",
        "tests/sde/test_tree.py::test_the_law",
    ),
    Mutant(
        "sde/tree.py", "areas are differences in single precision",
        "(integral[1] - integral[0]) / (b - a)", "(integral[1].float() - integral[0].float()) / (b - a)",
        "tests/sde/test_tree.py::test_single_precision_is_rounded_at_the_end",
    ),
]  # fmt: skip
