"""The search for plans on a budget: all ways for tasks to part from the shared stream, or those that greedy parting looks at."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dtme._shapes import Bool, Float, Int
from dtme.plan.cost import ModelFlops
from dtme.plan.placement import Inserts, share_of
from dtme.plan.plan import Plan
from dtme.plan.rates import ConflictRates

_AT_ONCE = 2_000_000
"""Numbers in a tensor that holds several ways."""


class Search:
    """Ways of parting: per task the place of the block where it parts, the number of blocks if it never does."""

    def __init__(self, rates: ConflictRates, flops: ModelFlops, inserts: Inserts) -> None:
        self.measured, self.inserts = rates, inserts
        self.tasks, self.blocks = len(rates.tasks), len(rates.blocks)
        in_range = inserts.modulation or inserts.adaptation
        self.rates = (fill_unknown(rates.range_rate) * in_range, fill_unknown(rates.null_rate) * inserts.expansion)
        # Whatever costs nothing is inserted wherever it may be; of the rest, how much is a choice.
        count = share_of(inserts.fraction, self.blocks)
        self.most = (count if in_range else 0, count if inserts.expansion else 0)
        self.least = (0 if inserts.adaptation else self.most[0], 0)
        idle = [block for block in rates.blocks if block not in flops.blocks]
        if idle:
            raise ValueError(f"max_cost: block {idle[0]!r} runs inside another block, so that its FLOPs are not known.")
        self.plain = flops.plain
        self.stream = torch.zeros(self.blocks, dtype=torch.float64)
        self.again, self.tokens, self.updates, self.both = (torch.zeros_like(self.stream) for _ in range(4))
        place = -1
        for name, block in flops.blocks.items():
            if name in rates.blocks:
                place = rates.blocks.index(name)
                self._price_inserts(place, name, flops)
            if place >= 0:  # a block that was not analysed carries the streams of the one before it
                self.stream[place] += block.stream + block.behind
        self.places = torch.arange(self.blocks)

    def _price_inserts(self, place: int, name: str, flops: ModelFlops) -> None:
        block, tokens = flops.blocks[name], self.inserts.tokens_per_task
        rank = self.inserts.rank
        try:
            if self.inserts.expansion:
                self.again[place] = block.shared
                self.tokens[place] = block.run(1, tokens) - block.run(1)
            if self.inserts.adaptation:
                self.updates[place] = block.run(1, rank=rank) - block.run(1)
            if self.inserts.adaptation and self.inserts.expansion:
                self.both[place] = block.run(1, tokens, rank) - block.run(1, tokens)
        except ValueError as why:
            raise ValueError(f"max_cost: block {name!r} cannot take what is to be inserted. {why}") from None

    def go_every_way(self) -> Iterator[Int[Tensor, "ways tasks"]]:
        """All ways, the latest first. The last task to share a stream is alone in it, and so parts with the one before."""
        falling = self.places.new_tensor(range(self.blocks, -1, -1))
        for first in falling.tolist():
            others = torch.cartesian_prod(*[falling] * (self.tasks - 1)).view(-1, self.tasks - 1)
            ways = torch.cat([torch.full_like(others[:, :1], first), others], 1)
            never_alone = (ways == ways.amax(1, keepdim=True)).sum(1) > 1
            yield from ways[never_alone].split(max(1, _AT_ONCE // self.blocks**2))

    def go_one_by_one(self) -> Iterator[Int[Tensor, "ways tasks"]]:
        """The ways that greedy parting looks at, and those where all tasks part at one block."""
        yield torch.arange(self.blocks, -1, -1).unsqueeze(1).expand(-1, self.tasks)
        now = self.places.new_full((1, self.tasks), self.blocks)
        while True:
            ways = []
            for task in range(self.tasks):
                for earlier in range(int(now[0, task]) - 1, -1, -1):
                    way = now.clone()
                    way[0, task] = earlier
                    latest = way == way.max()
                    way[latest] = int(way.max() if int(latest.sum()) > 1 else way[~latest].max())
                    ways.append(way)
            if not ways:
                return
            looked_at = torch.cat(ways)
            yield looked_at
            cost, score = (each[:, -1, -1] for each in self.evaluate(torch.cat([now, looked_at])))
            gained, paid = score[1:] - score[0], (cost[1:] - cost[0]).clamp_min(1.0)
            if not bool((gained > 1e-12).any()):
                return
            now = looked_at[(gained / paid).argmax()].unsqueeze(0)

    def evaluate(
        self, ways: Int[Tensor, "ways tasks"]
    ) -> tuple[Float[Tensor, "ways in_range in_null"], Float[Tensor, "ways in_range in_null"]]:
        """FLOPs and conflict resolved of each way, for each number of blocks with inserts of either space."""
        parted = ways.unsqueeze(1) <= self.places.unsqueeze(1)
        sharing = (~parted).any(-1)
        own = parted.sum(-1).to(torch.float64)
        streams = own + sharing
        gains = self._gains(parted)
        orders = [_order_by_gain(gain) for gain in gains]
        # Streams without task tokens run apart from those with some, and then without low-rank updates.
        prices = (streams * self.updates, own * self.tokens + sharing * self.again)
        limits = list(zip(orders, self.least, self.most, strict=True))
        in_range, in_null = (_sum_first(gain, *limit) for gain, limit in zip(gains, limits, strict=True))
        for_range, for_null = (_sum_first(price, *limit) for price, limit in zip(prices, limits, strict=True))
        cost = (self.plain + ((streams - 1) * self.stream).sum(-1)).view(-1, 1, 1)
        cost = cost + for_range.unsqueeze(2) + for_null.unsqueeze(1)
        if self.inserts.adaptation and self.inserts.expansion:
            both = own * self.both - streams * self.updates
            chosen = [_choose_first(*limit).to(torch.float64) for limit in limits]
            cost = cost + torch.einsum("wmb,web,wb->wme", *chosen, both)
        return cost, in_range.unsqueeze(2) + in_null.unsqueeze(1)

    def _gains(self, parted: Bool[Tensor, "ways blocks tasks"]) -> list[Float[Tensor, "ways blocks"]]:
        """What inserts for all tasks that have parted resolve: all pairs but those of tasks that still share a stream."""
        sharing = (~parted).to(torch.float64)
        every = [rates.sum((1, 2)) / 2 for rates in self.rates]
        kept = [torch.einsum("wbi,bij,wbj->wb", sharing, rates, sharing) / 2 for rates in self.rates]
        return [(whole - shared).round(decimals=12) for whole, shared in zip(every, kept, strict=True)]

    def make_plan(self, way: Int[Tensor, " tasks"], in_range: int, in_null: int) -> Plan:
        """The plan of a way of parting and a number of blocks for either space, counted from the least."""
        parted = way <= self.places.unsqueeze(1)
        counts = (self.least[0] + in_range, self.least[1] + in_null)
        placed: list[dict[str, list[str]]] = []
        for gain, count in zip(self._gains(parted.unsqueeze(0)), counts, strict=True):
            chosen = _choose_first(_order_by_gain(gain), count, count)[0, 0] & (gain[0] > 0)
            placed.append(
                {
                    self.measured.blocks[place]: [
                        self.measured.tasks[task] for task in parted[place].nonzero().flatten()
                    ]
                    for place in chosen.nonzero().flatten().tolist()
                }
            )
        return Plan(
            tasks=self.measured.tasks,
            modulate=placed[0] if self.inserts.modulation else {},
            expand=placed[1],
            adapt=placed[0] if self.inserts.adaptation else {},
            tokens_per_task=self.inserts.tokens_per_task,
            rank=self.inserts.rank,
            modulator=self.inserts.modulator,
        )


class Front:
    """Of all ways looked at, those that resolve more than any cheaper one."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, ...] = ()

    def add(self, cost: Tensor, score: Tensor, ways: Tensor) -> None:
        """Compare more ways with those kept."""
        number = torch.arange(cost.numel()).view_as(cost).flatten()
        way, choice = number // (cost[0].numel()), number % cost[0].numel()
        new = (
            cost.flatten(),
            score.round(decimals=12).flatten(),
            ways[way],
            choice // cost.shape[2],
            choice % cost.shape[2],
        )
        if self.kept:
            # What is cheaper and as good is known for most without sorting.
            cheaper = torch.searchsorted(self.kept[0], new[0]) - 1
            better = (cheaper < 0) | (new[1] > self.kept[1][cheaper.clamp_min(0)])
            new = tuple(torch.cat([old, own[better]]) for old, own in zip(self.kept, new, strict=True))
        order = (-new[2].sum(1)).argsort(stable=True)
        order = order[(-new[1][order]).argsort(stable=True)]
        order = order[new[0][order].argsort(stable=True)]
        best = new[1][order].cummax(0).values
        rises = torch.cat([best.new_ones(1, dtype=torch.bool), best[1:] > best[:-1]])
        self.kept = tuple(own[order[rises]] for own in new)

    def list_ways(self) -> tuple[list[Tensor], list[int], list[int]]:
        """The ways, and how many blocks they take for either space, by rising cost."""
        return list(self.kept[2]), self.kept[3].tolist(), self.kept[4].tolist()


def _order_by_gain(gains: Float[Tensor, "ways blocks"]) -> Int[Tensor, "ways blocks"]:
    """The blocks from the one where most is resolved on, the later first of those that tie."""
    return gains.shape[1] - 1 - gains.flip(1).argsort(dim=1, descending=True, stable=True)


def _sum_first(
    values: Float[Tensor, "ways blocks"], order: Int[Tensor, "ways blocks"], least: int, most: int
) -> Float[Tensor, "ways counts"]:
    """The sum over the first blocks of an order, for each number of them."""
    return nn.functional.pad(values.gather(1, order).cumsum(1), (1, 0))[:, least : most + 1]


def _choose_first(order: Int[Tensor, "ways blocks"], least: int, most: int) -> Bool[Tensor, "ways counts blocks"]:
    """Which blocks are the first of an order, for each number of them."""
    return order.argsort(dim=1).unsqueeze(1) < torch.arange(least, most + 1).view(-1, 1)


def fill_unknown(rates: Float[Tensor, "blocks tasks tasks"]) -> Float[Tensor, "blocks tasks tasks"]:
    """Rates to be summed: a pair that could not be compared counts as none."""
    return rates.to(torch.float64).nan_to_num(0.0)
