"""The study's grids: which methods are run on which data, how far they prune, with which recipe and which seeds.

A grid is a list of experiments, one for each set of data; an experiment has a teacher, floors, and rows of pruned
models in the order of their worth. What a cell of it runs is said in cells.py.
"""

from dataclasses import dataclass

SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Method:
    """What a method changes in a shell script: `script` is topk or soft."""

    script: str
    environment: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()


WITHOUT = ("CONTRAST", "0")
METHODS = {
    "magnitude": Method("topk", (WITHOUT, ("METHOD", "magnitude"))),
    "movement": Method("topk", (WITHOUT,)),
    "soft movement": Method("soft", (WITHOUT,)),
    "CAP-m": Method("topk"),
    "CAP-m supcon": Method("topk", (("CL_SUPERVISED_LOSS_WEIGHT", "1"),), ("--cl_normalization", "supcon")),
    "CAP-m unsupervised": Method("topk", (("CL_SUPERVISED_LOSS_WEIGHT", "0"),)),
    "CAP-m PrC alone": Method("topk", (), ("--contrast_with", "pretrained")),
    "CAP-m SnC alone": Method("topk", (), ("--contrast_with", "snapshots")),
    "CAP-m FiC alone": Method("topk", (), ("--contrast_with", "finetuned")),
    "CAP-soft": Method("soft"),
}


@dataclass(frozen=True)
class Recipe:
    """How long a pruning run is, and its learning rate."""

    epochs: int = 10
    learning_rate: str = "3e-5"


@dataclass(frozen=True)
class Row:
    """One cell for each seed: a method at `keep` per cent of the weights of the masked matrices."""

    method: str
    keep: float
    seeds: tuple[int, ...] = SEEDS
    recipe: Recipe = Recipe()


@dataclass(frozen=True)
class Experiment:
    """One set of data with its teacher and its rows; `train_rows` None takes all of train.

    `environment` and `flags` go to every script, `teacher_flags` to the program that trains the teacher. With
    `published_warmup` a warm-up is as long as the scripts have it, else a tenth of the run.
    """

    task: str
    folder: str  # of the official files, below --data_dir
    train_rows: int | None
    rows: tuple[Row, ...]
    teacher: Recipe = Recipe(3)
    environment: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()
    teacher_flags: tuple[str, ...] = ()
    published_warmup: bool = False

    @property
    def batch(self) -> int:
        return 16 if self.task == "squad" else 32


def rows(methods: tuple[str, ...], keeps: tuple[float, ...], seeds=SEEDS, recipe: Recipe = Recipe()) -> tuple[Row, ...]:
    """Every method at every share kept: all methods of the first seed, then those of the next."""
    return tuple(Row(method, keep, (seed,), recipe) for seed in seeds for keep in keeps for method in methods)


# bfloat16 makes a step 1.4 times faster on a CPU with AMX, and a pass without gradient twice
FAST, OFTEN = ("--bf16",), (("SAVE_STEPS", "500"),)
SST2 = Recipe(10)
QQP = Recipe(10, "2e-4")
QQP_20 = Recipe(20, "2e-4")
QQP_20_MOVEMENT = Recipe(20, "1e-4")  # in `search` it is above chance with 20 epochs at this rate alone
QQP_ALL = Recipe(5, "2e-4")
SQUAD = Recipe(10, "2e-4")  # about as many steps as 4,000 pairs of QQP have
SQUAD_20 = Recipe(20, "2e-4")
SQUAD_TEACHER = Recipe(6, "1e-4")  # the published two epochs are 258 steps on 2,000 questions
DEMO = Recipe(6, "5e-4")

GRIDS: dict[str, tuple[Experiment, ...]] = {
    "sst2": (
        Experiment(
            *("sst-2", "SST-2", 8000),
            rows=(
                *rows(("CAP-m", "movement", "CAP-soft"), (10,), recipe=SST2),
                *rows(("soft movement", "CAP-m supcon"), (10,), recipe=SST2),
                *rows(("movement", "CAP-m", "CAP-soft"), (3,), recipe=SST2),
                *rows(("soft movement", "magnitude"), (3,), recipe=SST2),
                *rows(("magnitude",), (10,), recipe=SST2),
            ),
            environment=OFTEN,
            flags=FAST,
        ),
    ),
    "search": (
        Experiment(
            *("qqp", "QQP", 4000),
            rows=tuple(
                Row(method, 10, (1,), Recipe(epochs, rate))
                for epochs in (10, 20, 40)
                for rate in ("2e-4", "1e-4", "3e-5")
                for method in ("CAP-m", "movement", "CAP-soft", "soft movement", "magnitude")
            ),
            environment=OFTEN,
            flags=FAST,
        ),
    ),
    "qqp": (
        Experiment(
            *("qqp", "QQP", 4000),
            rows=tuple(
                row
                for keep in (10, 50)
                for row in rows(("CAP-m", "movement", "CAP-soft", "soft movement", "magnitude"), (keep,), recipe=QQP)
            ),
            environment=OFTEN,
            flags=FAST,
        ),
    ),
    "qqp-20": (
        Experiment(
            *("qqp", "QQP", 4000),
            rows=tuple(
                row
                for seed in SEEDS
                for row in (
                    *rows(("CAP-m", "CAP-soft", "soft movement", "magnitude"), (10,), (seed,), QQP_20),
                    Row("movement", 10, (seed,), QQP_20_MOVEMENT),
                )
            ),
            environment=OFTEN,
            flags=FAST,
        ),
    ),
    "qqp-all": (
        Experiment(
            *("qqp", "QQP", 23496),  # all of the subset that the study's results are on
            rows=rows(("CAP-m", "movement", "CAP-soft", "soft movement", "magnitude"), (10,), recipe=QQP_ALL),
            environment=OFTEN,
            flags=FAST,
        ),
    ),
    "squad": (
        Experiment(
            *("squad", "", 2000),
            rows=rows(("movement", "CAP-m"), (50, 10), seeds=(1,), recipe=SQUAD),
            teacher=SQUAD_TEACHER,
            environment=OFTEN,
            flags=FAST,
            teacher_flags=FAST,
        ),
    ),
    "squad-20": (
        Experiment(
            *("squad", "", 2000),
            rows=rows(("movement", "CAP-m"), (10, 50), seeds=(1,), recipe=SQUAD_20),
            teacher=SQUAD_TEACHER,
            environment=OFTEN,
            flags=FAST,
            teacher_flags=FAST,
        ),
    ),
    "ablation": (
        Experiment(
            *("qqp", "QQP", 4000),
            rows=rows(
                ("CAP-m", "CAP-m PrC alone", "CAP-m SnC alone", "CAP-m FiC alone", "CAP-m unsupervised"),
                (10,),
                recipe=QQP,
            ),
            environment=OFTEN,
            flags=FAST,
        ),
    ),
    # the paper's own tasks and its published recipe, for GPUs; BERT and data come from the Hub unless folders are given
    "paper": tuple(
        Experiment(
            *(task, folder, None),
            rows=rows(("movement", "soft movement", "CAP-m", "CAP-soft"), (50, 10, 3)),
            teacher=Recipe(2 if task == "squad" else 3),
            flags=("--bf16", "--tf32"),
            published_warmup=True,
        )
        for task, folder in (("qqp", "QQP"), ("mnli", "MNLI"), ("squad", ""))
    ),
    # minutes: on pairs and a small BERT that `python -m emmental.demo` makes, unless folders are given
    "demo": (
        Experiment(
            *("qqp", "QQP", 1024),
            rows=rows(("CAP-m", "movement"), (10,), seeds=(1, 2), recipe=DEMO),
            teacher=Recipe(4, "5e-4"),
            environment=(("SAVE_STEPS", "20"), ("EXTRA_EXAMPLES", "256")),
            flags=("--max_seq_length", "64"),
            teacher_flags=("--max_seq_length", "64"),
        ),
    ),
}
