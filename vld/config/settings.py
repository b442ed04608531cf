"""Every setting of a command: its type, default and meaning. Plain data; `vld.config.checks` fills and checks it."""

from dataclasses import dataclass, field
from typing import Any

# omegaconf's marker of a value that must be given, spelt out so that settings need no library.
MISSING = "???"

METHODS = ("erm", "weight_averaging", "ensemble")
"""How predictions are made along one run; all three are accumulated while it trains."""
WITH_WEIGHTS = ("erm", "weight_averaging")
"""Those of them that are one network; an ensemble has logits and no weights of its own."""
COMBINATIONS = ("model_soup", "greedy_soup", "ensemble_of_runs", "connectivity")
"""How predictions are made across finished runs, its members; no training."""
SELECTIONS = ("iid", "last", "oracle_step")
"""Which evaluation step stands for a run."""
WANDB_MODES = ("auto", "online", "offline", "disabled")
TUNINGS = ("full", "linear", "head")
NORMALIZATIONS = ("l2", "layer", "none")
SCHEDULES = ("constant", "rising", "falling")
ACCURACIES = ("iid_acc", "ood_acc", "ood_in_acc", "ood_out_acc")
"""Of a step, as fractions."""
SETTING_COLUMNS = {
    "backbone": "backbone.name",
    "dropout": "dropout",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "last_layer_lr_factor": "optim.last_layer_lr_factor",
    "seed": "seed",
    "split_seed": "split_seed",
    "steps": "optim.steps",
}
"""What tables and W&B call the settings that a study is about."""
KEEPABLE = tuple(
    f"{method}-{selection}{kind}"
    for method in METHODS
    for selection in SELECTIONS
    for kind in ("", "-logits")
    if method in WITH_WEIGHTS or kind
)
"""What a finished run can keep of its weights and evaluation logits."""
KEPT_WEIGHTS = tuple(name for name in KEEPABLE if not name.endswith("-logits"))


@dataclass
class DatasetConfig:
    name: str = MISSING
    """What the dataset is called in run directories and tables."""
    folder: str = MISSING
    """Its folder below data_dir, with one sub-folder per domain, each with one per class."""
    store_size: int = 256
    """Decoded training images are at most this many pixels high and wide (never upsampled)."""
    csv: str | None = None
    """Instead of folders: a file below data_dir with the columns path, domain and class."""
    curve_images: int | None = None
    """Of each *out* part (and four times as many of the left-out domain's *in* part) the learning curve is evaluated on;
    the selected steps and the last are evaluated in full. null: always in full."""
    verify: str = "strict"
    """Where a known dataset does not hold what it must: strict refuses it, warn says so and goes on."""
    mirror: str | None = None
    """Where to fetch the archives from, under their file names, instead of their official sources: a URL."""


@dataclass
class BackboneConfig:
    name: str = MISSING
    """What the backbone is called in tables."""
    library: str = "torchvision"
    """Where its code is: torchvision or timm."""
    architecture: str = MISSING
    """Its name in that library."""
    published: str | None = None
    """Its published weights: a torchvision weights name, or the package that ships them."""
    weights: str | None = None
    """null: the published ones; a path: that state_dict file; none: random initial values, nothing frozen."""
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    feature_scale: float = 1.0
    """Multiplies the representation before dropout; below 1 where features are too large for 90 % dropout."""
    tuning: str = "full"
    """What is trained: full (all weights); linear (the paper's equation 1: vectors v and the last layer, on frozen blocks);
    head (the last layer alone: a linear probe)."""
    normalize: str = "l2"
    """Of linear tuning, each block's pooled output: l2 (to length 1), layer (to mean 0 and variance 1 over its units), none."""
    stage_dropout: list[float] = field(default_factory=list)
    """Dropout rate at the end of each stage of the network, in order; empty: none."""
    stage_dropout_kind: str = "element"
    """What stage dropout drops: element (single values) or channel (whole maps)."""
    stochastic_depth: float = 0.0
    """Probability that a residual branch is dropped for an image: of the last block; it rises linearly with depth up to that."""


@dataclass
class MethodConfig:
    name: str = MISSING
    """Which method's accuracies the table puts forward; a combination is made from its members' runs."""
    members: list[str] = field(default_factory=list)
    """The runs that a combination is made from: settings that vary among them, each with its values, as seed=0,1,2."""
    member_step: str = "last"
    """Which step of its members a combination takes: the last, or each one's of best i.i.d. accuracy (iid)."""
    average: str = "logits"
    """What an ensemble of runs averages: logits or softmax."""


@dataclass
class OptimConfig:
    name: str = "sgd"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.9
    """SGD's momentum; Adam's beta 1."""
    steps: int = 10_000
    milestones: list[int] = field(default_factory=lambda: [5_000])
    """The learning rate is multiplied by gamma after each of these numbers of steps."""
    gamma: float = 0.1
    last_layer_lr_factor: float = 1.0
    """The last layer learns at this multiple of lr (Figure 6 of the paper: 10)."""


@dataclass
class AveragingConfig:
    """The average of the weights of steps start, start + interval, …"""

    start: int = 300
    interval: int = 1


@dataclass
class EnsembleConfig:
    """The ensemble of the checkpoints at steps start, start + every, … and the last."""

    start: int = 300
    every: int = 300


@dataclass
class WandbConfig:
    mode: str = "auto"
    """online, offline, disabled; auto: online when logged in, else offline."""
    project: str | None = None
    """null: that of WANDB_PROJECT, else vld."""
    entity: str | None = None
    """Whose project: a user or a team. null: that of WANDB_ENTITY, else the user's default."""


@dataclass
class StudyConfig:
    """A named grid of runs that makes one figure of the paper, or one of your own: `hydra.sweeper.params` are its axes."""

    name: str | None = None
    shares: list[str] = field(default_factory=list)
    """Other studies, some of whose runs its figure shows as well."""
    combinations: list[str] = field(default_factory=list)
    """Methods that combine its runs."""
    members: list[str] = field(default_factory=list)
    """The axes along which they combine."""


@dataclass
class Config:
    study: StudyConfig = field(default_factory=StudyConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data_dir: str = "data"
    output_dir: str = "outputs"
    test_domain: Any = "all"
    """all, a domain's name, its index in sorted order, or a list of those."""
    image_size: int = 224
    dropout: float = 0.9
    """Probability that a unit of the penultimate representation is dropped in training."""
    dropout_schedule: str = "constant"
    """The rate over training: constant; rising (linearly from 0 to `dropout`); falling (from `dropout` to 0)."""
    batch_size: int = 32
    """Images from each training domain in one step."""
    eval_every: int = 300
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    keep: list[str] = field(default_factory=lambda: ["erm-last", "erm-last-logits"])
    """Weights and logits that a finished run keeps: <method>-<selection> and <method>-<selection>-logits."""
    seed: int = 0
    """Batches, augmentation, dropout masks, and a backbone without pre-trained weights."""
    split_seed: int = 0
    head_seed: int = 0
    """The last layer's initial values: equal for all runs that a soup may average."""
    checkpoint_every: float = 300.0
    """Seconds between checkpoints of a run while it trains; 0: after every step."""
    if_running: str = "wait"
    """What to do about a run that another process is training: wait for it, or skip it."""
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"
    """Compile the network and the augmentation: true, false; auto: on a GPU, unless deterministic."""
    deterministic: bool = False
    dry_run: bool = False
    """Check every job, say what is finished and what is left to do, and stop there."""
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class StatusConfig(Config):
    """The settings of `status.py`: those of the runs, and how to show them."""

    watch: bool = False
    """Show it again and again, until all runs are finished."""
    format: str = "table"
    """table or json."""


@dataclass
class ReportConfig(Config):
    """The settings of `report.py`: those of the runs, which narrow it, and how to show them."""

    selection: str | None = None
    """Which evaluation step stands for a run: iid, last or oracle_step. null: iid (of figure10, which is about that, last)."""
    run: str | None = None
    """The id of a run whose learning curves are drawn; null: of the best of each dataset."""


@dataclass
class PrepareConfig:
    """The settings of `prepare.py`."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    data_dir: str = "data"
    image_size: int = 224
    verify: bool = False
    """Decode every image again, although there is a store, and compare."""


@dataclass
class AnalyseConfig:
    """The settings of `analyse.py`."""

    run: str = "all"
    """A run's id or directory; all: every finished run that kept the weights."""
    weights: str = "erm-last"
    """Which of the weights that a run kept."""
    data_dir: str = "data"
    output_dir: str = "outputs"
    device: str = "auto"
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class PublishConfig:
    """The settings of `publish.py`."""

    output_dir: str = "outputs"
    wandb: WandbConfig = field(default_factory=WandbConfig)
    workspace: bool = False
    """Save the dashboard's view, too."""
