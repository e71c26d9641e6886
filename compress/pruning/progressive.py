"""The paper's progressive pruning: choose, cut, fine-tune, measure, accept or restore.

What the paper leaves open is a field of `prune_plan.Plan`, and every report prints it.
"""
from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
from torch import Tensor

from bench.profile.latency import latency
from compress.distill import DistilledLoss, teacher
from compress.importance import channel_scores, loss_gradients
from compress.prune import prune
from compress.pruning.plan import Drop, Log, Measured, Plan, accepts, arrived, cost, target_words
from compress.pruning.schedule import Unit, narrowed, next_widths, strongest
from data.loader import collate
from deploy.runtimes.runtime import DTYPES
from evaluation.bootstrap import drop_interval
from models.channels import widths
from models.heads.loss import DetectionLoss
from models.layer import Net
from training.finetune import SHOWN, Tuner, plain_pictures
from utils import ddp, runs
from utils.errors import EnvironmentFault

TAYLOR_PICTURES, TIMED_PICTURES = 64, 16
State = dict[str, Tensor]


class Bench:
    """Fine-tunes and measures candidates of one parent; every finished step is remembered on disk."""

    def __init__(self, tuner: Tuner, plan: Plan, origin: Net, parent: State) -> None:
        self.tuner, self.plan, self.origin = tuner, plan, origin
        self.taken: dict[str, int] = {}                    # steps that a round of units has had
        self.gradients: tuple[State, State] | None = None  # the weights last asked for, and theirs
        self.loss = None
        if plan.teach:
            teach = teacher(origin, parent, tuner.device, DTYPES[tuner.precision])
            self.loss = DistilledLoss(DetectionLoss(origin), teach)

    def choose(self, net: Net, state: State, units: list[Unit]) -> dict[str, list[int]]:
        """The keep-set of one step of every unit that can still take one; the same on all processes."""
        taken = self.taken.get(units[0].name, 0)
        new, self.taken[units[0].name] = next_widths(units, widths(net), taken, self.plan.round_to)
        if not new:
            return {}
        keep = self.best_channels(net, state, narrowed(net, self.origin, new, self.plan.round_to))
        if not ddp.same_on_all(zlib.crc32(json.dumps(keep).encode())):
            raise EnvironmentFault("the processes would cut different channels; nothing was cut. "
                                   "Are all of them the same machine type and versions?")
        return keep

    def best_channels(self, net: Net, state: State, width: dict[str, int]) -> dict[str, list[int]]:
        """The keep-set that leaves the groups of `width` as many channels, the best by --importance."""
        rule, gradients = self.plan.importance, None
        if rule == "taylor":
            if self.gradients is None or self.gradients[0] is not state:
                self.gradients = state, self._gradients(net, state)
            gradients = self.gradients[1]
        return strongest(width, lambda group: channel_scores(net, state, group, rule, gradients=gradients,
                                                             seed=self.tuner.args.seed))

    def tune(self, net: Net, state: State, name: str) -> tuple[Net, State, Measured, float]:
        """The network fine-tuned (first seed), what it reaches over all seeds, and the seconds spent."""
        names = [f"steps/{name}-s{s}" for s in range(self.plan.seeds)]
        if not all(self.tuner.done(n) for n in names):
            state = self.tuner.recalibrate(net, state)
        seed = self.tuner.args.seed
        tries = [self.tuner.tune(net, state, n, self.plan.epochs, seed=seed + s, loss=self.loss)
                 for s, n in enumerate(names)]
        mean = {key: float(np.mean([t.metrics[key] for t in tries])) for key in SHOWN}
        first = tries[0]
        reached = replace(self.measure(first.net, first.state, mean),
                          seeds=tuple(t.metrics[self.plan.metric] for t in tries))
        if "latency" in dict(self.plan.until):
            ms = remembered_latency(self.tuner, first.net, first.state, name)
            reached = replace(reached, counts={**reached.counts, "latency": ms})
        return first.net, first.state, reached, sum(t.seconds for t in tries)

    def measure(self, net: Net, state: State, metrics: dict[str, float] | None = None) -> Measured:
        """A network's metrics, counts and matches on the validation set."""
        found = None
        if self.tuner.world.main:
            full, _, _ = self.tuner.validator(net, state)
            found = {key: getattr(full, key) or 0.0 for key in SHOWN}, full.matches
        own, matches = self.tuner.share(found)
        return Measured(metrics or own, cost(net, self.tuner.args.imgsz), matches, own["map50"])

    def drop(self, reference: Measured, reached: Measured) -> Drop:
        """What was lost against the reference."""
        lost = 100 * (reference.metrics[self.plan.metric] - reached.metrics[self.plan.metric])
        if self.plan.metric != "map50":
            return Drop(lost, None)
        low, high = drop_interval(reference.matches, reached.matches, seed=self.tuner.args.seed)
        # The pictures' chance is that of the first seed; the mean of several seeds moves it, not its width.
        first = 100 * (reference.first - reached.first)
        return Drop(lost, (100 * low + lost - first, 100 * high + lost - first))

    def _gradients(self, net: Net, state: State) -> State:
        args, data = self.tuner.args, self.tuner.train_set
        count = min(TAYLOR_PICTURES, len(data))
        chosen = [data.unvaried(i * len(data) // count) for i in range(count)]
        batches = [collate(chosen[at:at + args.batch_size])[:2] for at in range(0, count, args.batch_size)]
        return loss_gradients(net, state, batches, DetectionLoss(net),
                              {"box": args.box, "obj": args.obj, "cls": args.cls}, self.tuner.device)


def progressive(net: Net, state: State, original: Measured, units: list[Unit], bench: Bench,
                log: Log) -> tuple[Net, State, Measured]:
    """Algorithm 1 of the paper: the network that is left when no layer can lose another sixteenth.

    original: what the unpruned network reaches; also returned is what the pruned one does.

    Each step takes 1/16 of a unit's original channels away, fine-tunes, measures; it stands while the drop
    stays within the tolerance, else the network before it comes back and the unit is left alone.
    """
    plan = bench.plan
    current = reference = original
    for group in [[unit] for unit in units] if plan.scope == "layer" else [units]:
        if plan.reference == "layer":
            reference = current
        while not log.ended:
            keep = bench.choose(net, state, group)
            if not keep:
                log.stop(group, "nothing is left to take")
                break
            child, child_state, reached, seconds = bench.tune(*prune(net, state, keep), log.name(group))
            lost = bench.drop(reference, reached)
            good, why = accepts(plan, lost, bench.drop(original, reached).points)
            log.step(group, child, reached, lost, good, why, seconds)
            if not good:
                log.stop(group, why)
                break
            net, state, current = child, child_state, reached
            if plan.reference == "previous":
                reference = current
            if arrived(plan, reached.counts):
                log.end(f"the target is reached: {target_words(plan, reached.counts)}")
    return net, state, current


def remembered_latency(tuner: Tuner, net: Net, state: State, name: str) -> float:
    """Median ms a picture on one thread, bf16 where native; measured once, a second run reads it."""
    path = tuner.folder / "latency" / f"{name}.json"
    if tuner.world.main and not path.is_file():
        path.parent.mkdir(exist_ok=True)
        runs.write_json(path, {"ms": latency(net, state, tuner.args.imgsz, sample_pictures(tuner))})
    return float(tuner.share(json.loads(path.read_text())["ms"] if tuner.world.main else 0.0))


def sample_pictures(tuner: Tuner) -> Tensor:
    """Validation pictures uint8 [N, 3, S, S], evenly chosen, for timing."""
    return plain_pictures(tuner.val_set, TIMED_PICTURES)
