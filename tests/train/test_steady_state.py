from pathlib import Path

from torchimplicit.train.command.cli import main


def test_the_mnist_recipe_with_steady_states(mnist_folder, capsys):
    words = ["fit", "--config", "mnist", "--data-dir", str(mnist_folder.parent), "--data.validation", "8"]
    words += ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    assert main([*words, "--trainer.log_every_n_steps", "1", "--model.network.solver", "SteadyState"]) == 0
    config = Path("runs/mnist/version_0/config.yaml").read_text()
    assert "SteadyState" in config
    assert "Anderson" not in config
    assert list(Path().glob("runs/mnist/version_0/checkpoints/best.ckpt"))
