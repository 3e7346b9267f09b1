"""Why an optimizer is in a plan, or not: in the seconds and bytes that it makes, with all others as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

from safelight.optimizers.registry import Fidelity, Optimizer
from safelight.planner.forecast import Chosen
from safelight.planner.search import AS_FAST, WORTH_IT, Point, Search
from safelight.simulate.cost import PHASES, Cost


def seconds(value: float) -> str:
    """ "12 ms", "0.21 s", "3.4 s", "75 s", "12 min"."""
    if value < 0.1:
        return f"{value * 1000:.3g} ms"
    if value < 120:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min"


def size(nbytes: float) -> str:
    """ "6.1 GiB", "312 MiB"."""
    return f"{nbytes / 2**30:.1f} GiB" if abs(nbytes) >= 0.95 * 2**30 else f"{nbytes / 2**20:.0f} MiB"


@dataclass(frozen=True, slots=True)
class Reasons:
    """point: the plan. plain: without any optimizer. speed, memory: what the picture may lose."""

    search: Search
    point: Point
    plain: Cost
    budget_bytes: int
    speed: Fidelity
    memory: Fidelity

    # -- taken ---------------------------------------------------------------------------------------------------------

    def taken(self, choice: Chosen, requested: bool) -> str:
        others = [other for other in self.point.chosen if other[0].name != choice[0].name]
        without = self.search.point(others).cost if others else self.plain
        said = self.difference(without, self.point.cost) or "no effect is predicted"
        return f"asked for; {said}" if requested else said

    def difference(self, before: Cost, after: Cost) -> str:
        """What changes from one prediction to the next, "" if nothing does."""
        memory = _memory(before, after)
        time = _time(before, after, self.search.pictures)
        if memory and time:
            return f"{memory}; {time}"
        return memory or time

    # -- left ----------------------------------------------------------------------------------------------------------

    def left(self, known: Optimizer) -> str:
        if known.name in self.search.without:
            return "ruled out"
        if reason := self.search.pointless(known):
            return reason
        candidates = [choice for choice in self.search.candidates if choice[0].name == known.name]
        refusals = [self.search.why_not(choice, (*self._without_rivals(choice), choice)) for choice in candidates]
        possible = [choice for choice, why in zip(candidates, refusals, strict=True) if why is None]
        if not possible:
            return next((why for why in refusals if why), "it has nothing to act on here")
        if known.traced and known.fidelity > max(self.speed, self.memory):  # a trace takes a second, for no decision
            return f"{known.fidelity.word}, which --fidelity {known.fidelity.word} allows"
        tried = [(choice, self._with(choice)) for choice in possible]
        reachable = [(choice, cost) for choice, cost in tried if cost is not None]
        if not reachable:
            return self._rival(possible[0])
        choice, cost = min(reachable, key=lambda one: one[1].per_picture(self.search.pictures))
        return self._judged(known, choice, cost)

    def _without_rivals(self, choice: Chosen) -> Sequence[Chosen]:
        return [other for other in self.point.chosen if not self.search.clash(other, choice)]

    def _with(self, choice: Chosen) -> Cost | None:
        if any(self.search.clash(other, choice) for other in self.point.chosen):
            return None
        return self.search.point((*self.point.chosen, choice)).cost

    def _rival(self, choice: Chosen) -> str:
        rival = next(other for other in self.point.chosen if self.search.clash(other, choice))
        instead = self.search.with_candidate(self.point.chosen, choice)
        reason = f"not with {rival[0].name}: {self.search.clash(rival, choice)}"
        if instead is None:
            return reason
        cost = self.search.point(instead).cost
        said = self.difference(self.point.cost, cost)
        return f"{reason}; in its place {said}" if said else f"{reason}; in its place nothing would change"

    def _judged(self, known: Optimizer, choice: Chosen, cost: Cost) -> str:
        pictures = self.search.pictures
        before, after = self.point.cost.per_picture(pictures), cost.per_picture(pictures)
        saves = cost.peak_bytes <= self.point.cost.peak_bytes * WORTH_IT
        said = self.difference(self.point.cost, cost)
        if after <= before * WORTH_IT:
            if known.fidelity > self.speed:
                return f"{known.fidelity.word}, which --fidelity {known.fidelity.word} allows: {said}"
            if cost.peak_bytes > self.budget_bytes:
                return f"would need {size(cost.peak_bytes)} of {size(self.budget_bytes)}: {said}"
            return f"another set is better: {said}"
        if cost.once and cost.seconds < self.point.cost.seconds * WORTH_IT:
            made = "a picture" if pictures == 1 else f"{pictures} pictures"
            return f"pays later than after {made}: {said}"
        if saves and known.fidelity > self.memory:
            return f"{known.fidelity.word}, and memory is not short: {said}"
        if saves:
            return f"memory is not short ({size(self.point.cost.peak_bytes)} of {size(self.budget_bytes)}): {said}"
        if after > before * AS_FAST and said:
            return f"{_bottleneck(self.point.cost)}: {said}"
        return f"no gain: {_bottleneck(self.point.cost)}"


def _bottleneck(cost: Cost) -> str:
    """What seconds and bytes are spent on."""
    slow, large = cost.slowest, cost.largest
    share = cost.phase(slow).seconds / cost.seconds if cost.seconds else 1.0
    return f"{share:.0%} of the time is {slow}, the peak is {large}"


def _memory(before: Cost, after: Cost) -> str:
    if after.peak_bytes <= before.peak_bytes * WORTH_IT or after.peak_bytes >= before.peak_bytes / WORTH_IT:
        name = before.largest if after.peak_bytes < before.peak_bytes else after.largest
        was, now = (cost.phase(name).peak_bytes for cost in (before, after))
        return f"{name} is the peak: {size(was)}, then {size(now)}"
    return ""


def _time(before: Cost, after: Cost, pictures: int) -> str:
    changed = {name: after.phase(name).seconds - before.phase(name).seconds for name in PHASES}
    name = max(PHASES, key=lambda phase: abs(changed[phase]))
    was, now = before.phase(name).seconds, after.phase(name).seconds
    is_same = abs(now - was) <= 0.005 * before.seconds
    said = "" if is_same else f"{name} {seconds(was)}, then {seconds(now)}"
    once = after.once - before.once
    if once > after.once / 2:  # more is another's, which has more or less to compile
        gain = (before.seconds - after.seconds) / after.batch_size
        paid = f", paid after {once / gain:.0f} pictures" if gain > 0 else ""
        return f"{said or 'no faster'} ({seconds(once)} once{paid})"
    return said
