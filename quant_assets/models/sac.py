"""Soft actor-critic with model-based planning. Reads top to bottom: parameters, networks, one update, training, ONNX. Pure.

Belongs here: how an agent learns, and the policy that comes out. Does not belong here: what it sees and is paid for
(`quant_assets/environments`), how good it is (`quant_assets/backtests/agents.py`), the registry.

The algorithm is that of Haarnoja et al. (2018), Soft Actor-Critic Algorithms and Applications, arXiv:1812.05905: a squashed
Gaussian actor, twin critics with Polyak-averaged targets, a temperature that is tuned to a target entropy. One update does
exactly what Stable-Baselines3's does, in the same order (`tests/models/test_sac.py` holds both to the same numbers).

What makes it quicker: the gradients of the three perceptrons are written out, so that the two critics are one batched
product, every buffer exists once, the actor's step computes no gradient of the critics' weights, an optimizer steps over one
flat vector, and a batch is gathered by one index over rows that hold a whole transition.

Planning, after Sutton's Dyna and Janner et al. (2019), When to Trust Your Model, arXiv:1906.08253: beside the real episodes
run k imagined ones for each, under the current policy, each on a path of its own posterior draw; a batch takes a share of
its transitions from them. k = 0 is model-free.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from quant_assets.environments.episodes import Episodes

LOG_STD_LOW, LOG_STD_HIGH = -20.0, 2.0
SQUASH_EPSILON = 1e-6  # inside the logarithm of tanh's slope
LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


class SacError(ValueError):
    """Something that cannot be trained, loaded or asked. Names the thing, the value and the way out."""


class LossIsNotFinite(FloatingPointError):
    """A loss became NaN or infinite; the message says where the batch lies."""


@dataclass(frozen=True)
class SacParameters:
    """Hyperparameters; the defaults are those published for selling a share's order over a day.

    Attributes:
        hidden_units: width of each hidden layer of actor and critics.
        learning_rate: of Adam, for actor, critics and temperature.
        batch_size: transitions per update.
        buffer_size: transitions that each of the two buffers (real, imagined) holds; the oldest go first.
        gamma: discount per step. An objective without discounting over a short episode wants 1.
        tau: share of the critics that moves into their targets at each update.
        target_entropy: of the policy, in nats; None: minus the number of action dimensions.
        initial_alpha: temperature at the start.
        learning_starts: transitions with uniformly random actions before the first update.
        episodes: real episodes at once.
        steps: real transitions in all; rounded up to whole sets of episodes.
        updates_per_step: gradient updates after each step of the `episodes` (of so many transitions); below 1 every
            so many steps.
        imagined_per_step: k, imagined transitions per real one.
        imagined_share: of a batch that is imagined. Without any real transition wanted at all, 1.
        reward_scale: rewards are multiplied by it before they are learned from.
        final_learning_rate_factor: the learning rate falls linearly to this share of itself over the training.
        keep_best: the policy that is returned is the best one on the validation episodes, instead of the last.
        evaluations: how often the policy is judged on the way, evenly spread.
        seed: of weights, exploration, paths and batches.
        threads: of torch. More than the machine has cores only wait.
    """

    hidden_units: tuple[int, ...] = (256, 256)
    learning_rate: float = 1e-4
    batch_size: int = 512
    buffer_size: int = 500_000
    gamma: float = 0.98
    tau: float = 0.01
    target_entropy: float | None = None
    initial_alpha: float = 1.0
    learning_starts: int = 2_000
    episodes: int = 16
    steps: int = 200_000
    updates_per_step: float = 1.0
    imagined_per_step: int = 0
    imagined_share: float = 0.5
    reward_scale: float = 1.0
    final_learning_rate_factor: float = 1.0
    keep_best: bool = True
    evaluations: int = 20
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.hidden_units or min(self.hidden_units) < 1:
            raise SacError(f"hidden_units = {self.hidden_units}: at least one layer of at least one unit")
        for name in (
            "learning_rate",
            "batch_size",
            "buffer_size",
            "tau",
            "initial_alpha",
            "episodes",
            "steps",
            "updates_per_step",
            "reward_scale",
            "threads",
        ):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise SacError(f"{name} = {getattr(self, name)}: it must be a number above 0")
        for name in ("gamma", "imagined_share", "tau", "final_learning_rate_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise SacError(f"{name} = {getattr(self, name)}: it must be from 0 to 1")
        for name in ("batch_size", "buffer_size", "episodes", "steps", "threads", "imagined_per_step"):
            if getattr(self, name) != int(getattr(self, name)):
                raise SacError(f"{name} = {getattr(self, name)}: it must be a whole number")
        for name in ("learning_starts", "imagined_per_step", "evaluations"):
            if getattr(self, name) < 0:
                raise SacError(f"{name} = {getattr(self, name)}: it must be at least 0")
        if self.buffer_size < self.batch_size:
            raise SacError(
                f"buffer_size = {self.buffer_size} holds no batch of batch_size = {self.batch_size} transitions"
            )


# -- networks ----------------------------------------------------------------------------------------------------------


class Workspace:
    """Memory for one pass of `count` perceptrons over a batch: activations of each layer and gradients of the same shape."""

    def __init__(self, count: int, sizes: Sequence[int], batch: int) -> None:
        import torch

        self.input: torch.Tensor | None = None
        self.values = [torch.empty(count, batch, width) for width in sizes[1:]]
        self.slopes = [torch.empty(count, batch, width) for width in sizes[1:]]
        self.input_slope = torch.empty(count, batch, sizes[0])


class Perceptrons:
    """`count` perceptrons of one shape, side by side; their weights are one flat vector, their gradient another.

    Args:
        count: 2 for twin critics, 1 for an actor.
        sizes: widths from input to output; hidden layers are rectified.
    """

    def __init__(self, count: int, sizes: Sequence[int]) -> None:
        import torch

        self.count, self.sizes = count, tuple(sizes)
        total = count * sum((i + 1) * o for i, o in itertools.pairwise(sizes))
        self.flat = torch.zeros(total)
        self.gradient = torch.zeros(total)
        self.weights, self.biases = self._views(self.flat)
        self._weight_slopes, self._bias_slopes = self._views(self.gradient)

    def _views(self, flat: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(weights [count, in, out], biases [count, 1, out]) of each layer, as views."""
        weights, biases, at = [], [], 0
        for i, o in itertools.pairwise(self.sizes):
            weights.append(flat[at : at + self.count * i * o].view(self.count, i, o))
            at += self.count * i * o
            biases.append(flat[at : at + self.count * o].view(self.count, 1, o))
            at += self.count * o
        return weights, biases

    def initialize(self, generator: torch.Generator) -> None:
        """Uniform within one over the root of the inputs, as torch's linear layers."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1 / math.sqrt(weight.shape[1])
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)

    def forward(self, x: torch.Tensor, work: Workspace) -> torch.Tensor:
        """Outputs, shape (count, batch, out); they and the hidden values stay in `work`.

        Args:
            x: shape (batch, in), the same for all perceptrons.
            work: made for this batch.
        """
        import torch

        value = work.input = x.expand(self.count, -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            value = torch.baddbmm(bias, value, weight, out=work.values[layer])
            if layer < len(self.weights) - 1:
                value.relu_()
        return value

    def backward(self, slope: torch.Tensor, work: Workspace, weights: bool, inputs: bool) -> torch.Tensor:
        """The chain rule after `forward` with the same `work`.

        Args:
            slope: of the loss by each output, shape (count, batch, out).
            work: as `forward` left it.
            weights: fill `self.gradient`.
            inputs: return the gradient by the inputs, shape (count, batch, in); else the return means nothing.
        """
        import torch

        assert work.input is not None
        for layer in reversed(range(len(self.weights))):
            below = work.values[layer - 1] if layer else work.input
            if weights:
                torch.bmm(below.transpose(1, 2), slope, out=self._weight_slopes[layer])
                torch.sum(slope, 1, keepdim=True, out=self._bias_slopes[layer])
            if layer or inputs:
                passed = work.slopes[layer - 1] if layer else work.input_slope
                slope = torch.bmm(slope, self.weights[layer].transpose(1, 2), out=passed)
                if layer:  # a rectifier passes what was above 0
                    torch.ops.aten.threshold_backward.grad_input(slope, below, 0, grad_input=slope)
        return slope


class Adam:
    """Kingma and Ba's optimizer over one flat vector, with torch's defaults."""

    def __init__(self, parameter: torch.Tensor, learning_rate: float) -> None:
        import torch

        self.parameter, self.learning_rate = parameter, learning_rate
        self.mean, self.square = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self.steps = torch.zeros(())

    def step(self, gradient: torch.Tensor) -> None:
        """One step downhill."""
        import torch

        self.steps += 1
        torch._fused_adam_(
            [self.parameter],
            [gradient],
            [self.mean],
            [self.square],
            [],
            [self.steps],
            lr=self.learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps."""
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """As `state` gave it."""
        for name, value in state.items():
            getattr(self, name).copy_(value)


# -- the buffer --------------------------------------------------------------------------------------------------------


class ReplayBuffer:
    """Transitions, one row each: observation, action (within [-1, 1]), reward, next observation, whether it ended there.

    Args:
        size: rows; the oldest are overwritten.
        observation, action: dimensions.
    """

    def __init__(self, size: int, observation: int, action: int) -> None:
        import torch

        self.observation, self.action = observation, action
        # Rows are touched, and so get memory, only when they are written.
        self.rows = torch.from_numpy(np.empty((size, 2 * observation + action + 2), np.float32))
        self.size, self.written = size, 0

    def __len__(self) -> int:
        return min(self.written, self.size)

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_observation: np.ndarray,
        terminated: bool | np.ndarray,
    ) -> None:
        """n transitions; arrays of shape (n, dimensions) and (n,).

        Raises:
            SacError: a number that is not finite.
        """
        import torch

        n = len(reward)
        ended = np.broadcast_to(np.float32(terminated), (n,))
        block = np.concatenate(
            [observation, action, reward[:, None], next_observation, ended[:, None]], axis=1, dtype=np.float32
        )
        if not np.isfinite(block).all():
            at, column = np.argwhere(~np.isfinite(block))[0]
            what = [
                *[f"observation {i}" for i in range(self.observation)],
                *[f"action {i}" for i in range(self.action)],
                "reward",
                *[f"next observation {i}" for i in range(self.observation)],
            ][column]
            raise SacError(
                f"transition {at}: {what} is {block[at, column]}; nothing that is not finite is learned from"
            )
        block = block[-self.size :]
        start = (self.written + n - len(block)) % self.size
        first = min(len(block), self.size - start)
        self.rows[start : start + first] = torch.from_numpy(block[:first])
        self.rows[: len(block) - first] = torch.from_numpy(block[first:])
        self.written += n

    def sample(self, out: torch.Tensor, generator: torch.Generator) -> None:
        """Rows drawn with replacement into `out`, shape (rows, columns).

        Raises:
            SacError: the buffer is empty.
        """
        import torch

        if not len(self):
            raise SacError("the replay buffer is empty: add transitions before an update (learning_starts)")
        torch.index_select(self.rows, 0, torch.randint(len(self), (len(out),), generator=generator), out=out)


# -- one update --------------------------------------------------------------------------------------------------------


@dataclass
class Losses:
    """What one update measured.

    Attributes:
        critic: half the mean squared temporal difference, summed over both critics.
        actor: mean of alpha log pi - min Q.
        alpha: temperature.
        entropy: minus the mean of log pi, nats.
    """

    critic: float
    actor: float
    alpha: float
    entropy: float


class Learner:
    """Actor, critics, targets, temperature and their optimizers.

    Args:
        observation, action: dimensions.
        parameters: see `SacParameters`.
    """

    def __init__(self, observation: int, action: int, parameters: SacParameters) -> None:
        import torch

        self.parameters, self.observation, self.action = parameters, observation, action
        self.generator = torch.Generator().manual_seed(parameters.seed)
        hidden, batch = parameters.hidden_units, parameters.batch_size
        actor, critic = (observation, *hidden, 2 * action), (observation + action, *hidden, 1)
        self.actor, self.critics, self.targets = (
            Perceptrons(1, actor),
            Perceptrons(2, critic),
            Perceptrons(2, critic),
        )
        self.actor.initialize(self.generator)
        self.critics.initialize(self.generator)
        self.targets.flat.copy_(self.critics.flat)
        self.actor_optimizer = Adam(self.actor.flat, parameters.learning_rate)
        self.critic_optimizer = Adam(self.critics.flat, parameters.learning_rate)
        self.log_alpha = torch.full((1,), math.log(parameters.initial_alpha))
        self.alpha_optimizer = Adam(self.log_alpha, parameters.learning_rate)
        wanted = parameters.target_entropy
        self.target_entropy = -float(action) if wanted is None else wanted
        self.batch = torch.empty(batch, 2 * observation + action + 2)
        self._actor_work, self._next_work = Workspace(1, actor, batch), Workspace(1, actor, batch)
        self._critic_work, self._target_work = Workspace(2, critic, batch), Workspace(2, critic, batch)
        self._acting: dict[int, Workspace] = {}
        self._taken, self._proposed = (torch.empty(batch, observation + action) for _ in range(2))
        self._next_proposed = torch.empty(batch, observation + action)

    def act(self, observation: np.ndarray, deterministic: bool) -> np.ndarray:
        """Actions within [-1, 1], shape (n, action), for scaled observations (n, observation)."""
        import torch

        n = len(observation)
        work = self._acting.setdefault(n, Workspace(1, self.actor.sizes, n))
        out = self.actor.forward(torch.from_numpy(np.ascontiguousarray(observation, np.float32)), work)[0]
        mean, log_std = out[:, : self.action], out[:, self.action :]
        if not deterministic:
            noise = torch.randn(mean.shape, generator=self.generator)
            mean = mean + noise * log_std.clamp(LOG_STD_LOW, LOG_STD_HIGH).exp()
        return torch.tanh(mean).numpy()

    def _propose(
        self, observation: torch.Tensor, work: Workspace, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(action, log pi [batch], standard deviation) of the policy for fixed normals."""
        import torch

        out = self.actor.forward(observation, work)[0]
        log_std = out[:, self.action :].clamp(LOG_STD_LOW, LOG_STD_HIGH)
        std = log_std.exp()
        action = torch.tanh(torch.addcmul(out[:, : self.action], noise, std))
        log_pi = (
            noise.square().mul_(-0.5).sub_(log_std).sub_(LOG_SQRT_TWO_PI)
            .sub_(torch.log(1 + SQUASH_EPSILON - action.square()))
            .sum(1)
        )  # fmt: skip
        return action, log_pi, std

    def update(self, noise: torch.Tensor | None = None, next_noise: torch.Tensor | None = None) -> Losses:
        """One step of critics, actor, temperature and targets on `self.batch`.

        Args:
            noise, next_noise: standard normals, shape (batch, action), of the actions at the observation and at the next
                one; drawn when None.
        """
        import torch

        o, a, gamma = self.observation, self.action, self.parameters.gamma
        batch, size = self.batch, len(self.batch)
        observation, reward = batch[:, :o], batch[:, o + a]
        next_observation, ended = batch[:, o + a + 1 : -1], batch[:, -1]
        if noise is None:
            noise = torch.randn(size, a, generator=self.generator)
        if next_noise is None:
            next_noise = torch.randn(size, a, generator=self.generator)

        # The temperature moves on the log probabilities of before the actor's step; all losses use the one before.
        action, log_pi, std = self._propose(observation, self._actor_work, noise)
        alpha = float(self.log_alpha.exp())
        mean_log_pi = float(log_pi.mean())
        self.alpha_optimizer.step(torch.full((1,), -(mean_log_pi + self.target_entropy)))

        # Critics: towards r + gamma (min target Q - alpha log pi) at the next observation.
        next_action, next_log_pi, _ = self._propose(next_observation, self._next_work, next_noise)
        self._next_proposed[:, :o], self._next_proposed[:, o:] = next_observation, next_action
        future = self.targets.forward(self._next_proposed, self._target_work)[:, :, 0]
        value = torch.minimum(future[0], future[1]).sub_(next_log_pi, alpha=alpha)
        wanted = torch.addcmul(reward, value, 1 - ended, value=gamma)
        self._taken[:] = batch[:, : o + a]
        difference = self.critics.forward(self._taken, self._critic_work)[:, :, 0] - wanted
        critic_loss = 0.5 * float(difference.square().mean(1).sum())
        self.critics.backward((difference / size)[:, :, None], self._critic_work, weights=True, inputs=False)
        self.critic_optimizer.step(self.critics.gradient)

        # Actor: down the gradient of alpha log pi - min Q under the new critics.
        self._proposed[:, :o], self._proposed[:, o:] = observation, action
        q = self.critics.forward(self._proposed, self._critic_work)[:, :, 0]
        first = q[0] <= q[1]
        actor_loss = alpha * mean_log_pi - float(torch.where(first, q[0], q[1]).mean())
        chosen = torch.stack([first, ~first]).float().div_(-size)[:, :, None]
        by_action = self.critics.backward(chosen, self._critic_work, weights=False, inputs=True).sum(0)[:, o:]
        slope = 1 - action.square()  # of tanh
        by_gauss = by_action * slope + (2 * alpha / size) * action * slope / (slope + SQUASH_EPSILON)
        raw = self._actor_work.values[-1][0, :, a:]
        free = (raw > LOG_STD_LOW) & (raw < LOG_STD_HIGH)
        by_log_std = (by_gauss * noise * std - alpha / size) * free
        self.actor.backward(
            torch.cat([by_gauss, by_log_std], 1)[None], self._actor_work, weights=True, inputs=False
        )
        self.actor_optimizer.step(self.actor.gradient)

        self.targets.flat.lerp_(self.critics.flat, self.parameters.tau)
        return Losses(critic_loss, actor_loss, alpha, -mean_log_pi)

    def set_learning_rate(self, rate: float) -> None:
        """Of all three optimizers."""
        for optimizer in (self.actor_optimizer, self.critic_optimizer, self.alpha_optimizer):
            optimizer.learning_rate = rate

    def state(self) -> dict[str, Any]:
        """Everything that an exact continuation needs, buffers and environments apart."""
        return {
            "actor": self.actor.flat,
            "critics": self.critics.flat,
            "targets": self.targets.flat,
            "log_alpha": self.log_alpha,
            "generator": self.generator.get_state(),
            "optimizers": [
                o.state() for o in (self.actor_optimizer, self.critic_optimizer, self.alpha_optimizer)
            ],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """As `state` gave it."""
        for network, name in ((self.actor, "actor"), (self.critics, "critics"), (self.targets, "targets")):
            network.flat.copy_(state[name])
        self.log_alpha.copy_(state["log_alpha"])
        self.generator.set_state(state["generator"])
        optimizers = (self.actor_optimizer, self.critic_optimizer, self.alpha_optimizer)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load(saved)


# -- what comes out ----------------------------------------------------------------------------------------------------


@dataclass
class SacPolicy:
    """A trained actor without its noise, from raw observations to actions within the environment's box.

    Attributes:
        environment: its name.
        observation_names, action_names: of each dimension, in order.
        mean, scale: observations are (x - mean) / scale for the network, float32, shape (observation,).
        action_low, action_high: the box, float32, shape (action,).
        hidden_units: widths.
        flat: the actor's weights, float32.
    """

    environment: str
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    action_low: np.ndarray
    action_high: np.ndarray
    hidden_units: tuple[int, ...]
    flat: np.ndarray
    _workspaces: dict[int, Workspace] = field(default_factory=dict, repr=False, compare=False)

    def _network(self) -> Perceptrons:
        import torch

        sizes = (len(self.observation_names), *self.hidden_units, 2 * len(self.action_names))
        network = Perceptrons(1, sizes)
        if network.flat.shape != self.flat.shape:
            raise SacError(
                f"policy for {self.environment}: {len(self.flat)} weights, its names and widths need {len(network.flat)}"
            )
        network.flat.copy_(torch.from_numpy(self.flat))
        return network

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The mean action, float32, shape (n, action), for raw observations of shape (n, observation).

        Raises:
            SacError: another shape, or a number that is not finite.
        """
        import torch

        x = _checked(observation, self.observation_names)
        network = self._network()
        work = self._workspaces.setdefault(len(x), Workspace(1, network.sizes, len(x)))
        out = network.forward(torch.from_numpy((x - self.mean) / self.scale), work)[
            0, :, : len(self.action_names)
        ]
        return _into_box(torch.tanh(out).numpy(), self.action_low, self.action_high)

    def to_onnx(self) -> bytes:
        """One graph from `observation` (n, observation) to `action` (n, action); scaling and box are inside."""
        from onnx import TensorProto, checker, helper, numpy_helper

        network, actions = self._network(), len(self.action_names)
        constants = {
            "mean": self.mean,
            "scale": self.scale,
            "half": (self.action_high - self.action_low) / np.float32(2),
            "middle": (self.action_high + self.action_low) / np.float32(2),
        }
        nodes = [
            helper.make_node("Sub", ["observation", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "scale"], ["layer_0"]),
        ]
        depth = len(network.weights)
        for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            last = i == depth - 1
            # The standard deviations, the other half of the outputs, are not needed without noise.
            keep = slice(None, actions if last else None)
            constants[f"weight_{i}"] = np.ascontiguousarray(weight[0, :, keep].numpy())
            constants[f"bias_{i}"] = np.ascontiguousarray(bias[0, 0, keep].numpy())
            nodes.append(
                helper.make_node(
                    "Gemm",
                    [f"layer_{i}", f"weight_{i}", f"bias_{i}"],
                    ["mean_action" if last else f"sum_{i}"],
                )
            )
            if not last:
                nodes.append(helper.make_node("Relu", [f"sum_{i}"], [f"layer_{i + 1}"]))
        nodes += [
            helper.make_node("Tanh", ["mean_action"], ["squashed"]),
            helper.make_node("Mul", ["squashed", "half"], ["scaled"]),
            helper.make_node("Add", ["scaled", "middle"], ["action"]),
        ]
        graph = helper.make_graph(
            nodes,
            "sac_policy",
            [
                helper.make_tensor_value_info(
                    "observation", TensorProto.FLOAT, ["n", len(self.observation_names)]
                )
            ],
            [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["n", actions])],
            [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        checker.check_model(model)
        return model.SerializeToString()


class OnnxPolicy:
    """An exported policy at inference: onnxruntime only, no torch.

    Args:
        model: bytes from `SacPolicy.to_onnx`.
        bundle: says `environment`, `observation_names`, `action_names`.
    """

    def __init__(self, model: bytes, bundle: Mapping[str, Any]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.environment = str(bundle["environment"])
        self.observation_names = tuple(bundle["observation_names"])
        self.action_names = tuple(bundle["action_names"])
        shapes = (self._session.get_inputs()[0].shape[1], self._session.get_outputs()[0].shape[1])
        if shapes != (len(self.observation_names), len(self.action_names)):
            raise SacError(
                f"the network takes {shapes[0]} observations and gives {shapes[1]} actions, its bundle names "
                f"{len(self.observation_names)} and {len(self.action_names)}: the two are not of one training"
            )

    def require(self, environment: Episodes) -> None:
        """Raise `SacError` where the policy does not fit an environment."""
        ours = (self.environment, self.observation_names, self.action_names)
        theirs = (environment.name, environment.observation_names, environment.action_names)
        for what, mine, wanted in zip(("environment", "observations", "actions"), ours, theirs, strict=True):
            if mine != wanted:
                raise SacError(
                    f"the policy was trained for {what} {mine}, the environment has {wanted}: train it again "
                    "(train_agents_job) or give the environment the parameters of its bundle"
                )

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Actions within the box, float32, shape (n, action).

        Raises:
            SacError: another shape, or a number that is not finite.
        """
        x = _checked(observation, self.observation_names)
        return self._session.run(["action"], {"observation": x})[0]


def _checked(observation: np.ndarray, names: Sequence[str]) -> np.ndarray:
    x = np.ascontiguousarray(observation, np.float32)
    if x.ndim != 2 or x.shape[1] != len(names):
        raise SacError(
            f"observations have shape {x.shape}, the policy takes (n, {len(names)}): {', '.join(names)}"
        )
    if not np.isfinite(x).all():
        at, which = np.argwhere(~np.isfinite(x))[0]
        raise SacError(
            f"observation {names[which]} in row {at} is {x[at, which]}; every number must be finite"
        )
    return x


def _into_box(squashed: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """From [-1, 1] to the environment's box, float32."""
    return squashed * ((high - low) / np.float32(2)) + (high + low) / np.float32(2)


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass
class TrainedAgent:
    """A policy and how it came about.

    Attributes:
        policy: the best on the validation episodes where there were evaluations and `keep_best`, else the last.
        history: one dict per report: real_steps, imagined_steps, updates, updates_per_second, reward (mean return of the
            newest real episodes, in the environment's units), critic_loss, actor_loss, alpha, entropy, score (None
            without `evaluate`).
        score: of `policy`; None without `evaluate`.
        seconds: of training, resumed parts included.
    """

    policy: SacPolicy
    history: list[dict[str, float | None]]
    score: float | None
    seconds: float


def train(
    real: Episodes,
    parameters: SacParameters,
    *,
    imagined: Episodes | None = None,
    initial: Any = None,
    evaluate: Callable[[SacPolicy], float] | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
    keep_checkpoint: bool = False,
    identity: str = "",
    progress: Callable[[dict[str, float | None]], None] | None = None,
) -> TrainedAgent:
    """Train an agent; the same arguments give the same bits on one machine, killed and resumed or not.

    Args:
        real: `parameters.episodes` episodes on the market that counts.
        parameters: see `SacParameters`.
        imagined: episodes of the same length on imagined paths, `imagined_per_step` times as many; needed when k > 0.
        initial: transitions to begin the imagined buffer with (`simulation.transitions.Transitions`), actions in the
            environment's box.
        evaluate: score of a policy, above is better; called at the evaluations.
        checkpoint: file that is written at the end of a set of episodes at most every `checkpoint_seconds`, continued from
            where it exists, and removed at the end.
        keep_checkpoint: leave it instead, without the buffers: the same call then returns the finished agent at once. Whoever
            trains several agents keeps those that are done until all are, and removes the files.
        identity: of what is not in `parameters` (markets, environment); a checkpoint of another one is refused.
        progress: called with each row of the history.

    Raises:
        SacError: arguments that do not fit each other; a checkpoint of another training.
        LossIsNotFinite: with the file that the batch was saved in.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(parameters.threads)
    try:
        with torch.no_grad():
            run = _Training(real, parameters, imagined, initial, checkpoint, identity)
            return run.finish(evaluate, checkpoint_seconds, keep_checkpoint, progress)
    finally:
        torch.set_num_threads(threads)


class _Training:
    """The state of one training: what a checkpoint holds."""

    def __init__(
        self,
        real: Episodes,
        parameters: SacParameters,
        imagined: Episodes | None,
        initial: Any,
        checkpoint: Path | None,
        identity: str,
    ) -> None:
        p = self.parameters = parameters
        self.real, self.imagined, self.checkpoint = real, imagined, checkpoint
        k = p.imagined_per_step
        if real.n != p.episodes:
            raise SacError(
                f"the environment runs {real.n} episodes, episodes = {p.episodes}: they must be equal"
            )
        if real.time_limited and p.gamma == 1:
            raise SacError(
                f"gamma = 1: {real.name} goes on after the last step, so without a discount nothing has a finite value; set "
                "gamma below 1"
            )
        if (k > 0) != (imagined is not None):
            raise SacError(
                f"imagined_per_step = {k} " + ("needs" if k else "and has") + " an imagined environment"
            )
        if imagined is not None:
            names = ("name", "observation_names", "action_names", "steps", "time_limited")
            if different := [n for n in names if getattr(imagined, n) != getattr(real, n)]:
                raise SacError(
                    f"the imagined environment differs from the real one in {', '.join(different)}"
                )
            if imagined.n != k * p.episodes:
                raise SacError(
                    f"the imagined environment runs {imagined.n} episodes, {k} x {p.episodes} are needed"
                )
        described = json.dumps(
            [asdict(p), real.name, real.observation_names, real.action_names, identity], default=str
        )
        self.identity = hashlib.blake2b(described.encode(), digest_size=12).hexdigest()

        observations, actions = len(real.observation_names), len(real.action_names)
        self.low, self.high = real.action_space.low, real.action_space.high
        self.learner = Learner(observations, actions, p)
        self.buffers = [ReplayBuffer(p.buffer_size, observations, actions)]
        if imagined is not None or initial is not None:
            self.buffers.append(ReplayBuffer(p.buffer_size, observations, actions))
        # A stream of its own, apart from that of weights and noise.
        self.rng = np.random.default_rng([p.seed, 1])
        self.sets = math.ceil(p.steps / (p.episodes * real.steps))
        self.sets_done = self.updates = 0
        self.credit = self.seconds = 0.0
        self.history: list[dict[str, float | None]] = []
        self.best_flat: np.ndarray | None = None
        self.best_score: float | None = None
        self.mean = np.zeros(observations, np.float32)
        self.scale = np.ones(observations, np.float32)
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
        else:
            self._explore(initial)
            if self.sets_done >= self.sets:
                raise SacError(
                    f"steps = {p.steps}: the random actions of the beginning (learning_starts = {p.learning_starts}, whole sets of "
                    f"{p.episodes} episodes of {real.steps} steps) take all of them; nothing would be learned"
                )

    # The beginning: random actions, from which observations get their scale.

    def _explore(self, initial: Any) -> None:
        p = self.parameters
        collected: list[list[Any]] = [[] for _ in self.buffers]
        if initial is not None:
            if initial.observations.shape[2] != len(self.mean) or initial.actions.shape[2] != len(self.low):
                raise SacError(
                    f"the initial transitions have {initial.observations.shape[2]} observations and "
                    f"{initial.actions.shape[2]} actions, the environment has {len(self.mean)} and {len(self.low)}: "
                    "materialize them again"
                )
            collected[1].append(
                (
                    initial.observations[:, 0],
                    2 * (initial.actions[:, 0] - self.low) / (self.high - self.low) - 1,
                    initial.rewards[:, 0],
                    initial.next_observations[:, 0],
                    initial.dones[:, 0],
                )
            )
        while not collected[0] or self.sets_done * p.episodes * self.real.steps < p.learning_starts:
            for where, environment in zip(collected, self._environments(), strict=False):
                observation = environment.reset(self.rng)
                for _ in range(environment.steps):
                    action = self.rng.uniform(-1, 1, (environment.n, len(self.low))).astype(np.float32)
                    done = environment.step(_into_box(action, self.low, self.high))
                    where.append((observation, action, done.reward, done.observation, done.terminated))
                    observation = done.observation
            self.sets_done += 1
        seen = np.concatenate([part[0] for parts in collected for part in parts])
        self.mean = seen.mean(0, dtype=np.float64).astype(np.float32)
        scale = seen.std(0, dtype=np.float64).astype(np.float32)
        self.scale = np.where(scale < 1e-6, np.float32(1), scale)  # a constant observation carries nothing
        for buffer, parts in zip(self.buffers, collected, strict=True):
            for observation, action, reward, after, ended in parts:
                self._remember(buffer, self._scaled(observation), action, reward, self._scaled(after), ended)

    def _environments(self) -> list[Episodes]:
        return [self.real] if self.imagined is None else [self.real, self.imagined]

    def _scaled(self, observation: np.ndarray) -> np.ndarray:
        return (observation - self.mean) / self.scale

    def _remember(self, buffer: ReplayBuffer, *transition: Any) -> None:
        observation, action, reward, after, ended = transition
        buffer.add(observation, action, reward * self.parameters.reward_scale, after, ended)

    # The loop: sets of episodes, real and imagined in step.

    def finish(
        self,
        evaluate: Callable[[SacPolicy], float] | None,
        checkpoint_seconds: float,
        keep_checkpoint: bool,
        progress: Callable[[dict[str, float | None]], None] | None,
    ) -> TrainedAgent:
        p, last_saved = self.parameters, time.monotonic()
        while self.sets_done < self.sets:
            started = time.monotonic()
            before = self.updates
            returns, losses = self._one_set()
            self.sets_done += 1
            self.seconds += time.monotonic() - started
            rate = (self.updates - before) / max(time.monotonic() - started, 1e-9)
            due = (
                self.sets_done * p.evaluations // self.sets
                > (self.sets_done - 1) * p.evaluations // self.sets
            )
            if due or self.sets_done == self.sets:
                self._report(returns, losses, rate, evaluate, progress)
            if self.checkpoint is not None and time.monotonic() - last_saved >= checkpoint_seconds:
                self._save(self.checkpoint)
                last_saved = time.monotonic()
        if self.checkpoint is not None and keep_checkpoint:
            self.buffers = []
            self._save(self.checkpoint)
        elif self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
        best = self.best_flat if p.keep_best and self.best_flat is not None else None
        score = self.best_score if best is not None else (self.history[-1]["score"] if self.history else None)
        return TrainedAgent(self.policy(best), self.history, score, self.seconds)

    def _one_set(self) -> tuple[float, Losses | None]:
        """A set of episodes; (mean return of the real ones, the mean losses)."""
        p, environments = self.parameters, self._environments()
        observations = [self._scaled(e.reset(self.rng)) for e in environments]
        bounds = np.cumsum([e.n for e in environments])[:-1]
        returns = np.zeros(self.real.n)
        totals, count = np.zeros(4), 0
        self.learner.set_learning_rate(
            p.learning_rate * (1 - (1 - p.final_learning_rate_factor) * self.sets_done / self.sets)
        )
        for _ in range(self.real.steps):
            action = self.learner.act(np.concatenate(observations), deterministic=False)
            for i, (environment, chosen) in enumerate(
                zip(environments, np.split(action, bounds), strict=True)
            ):
                done = environment.step(_into_box(chosen, self.low, self.high))
                after = self._scaled(done.observation)
                self._remember(self.buffers[i], observations[i], chosen, done.reward, after, done.terminated)
                observations[i] = after
                if i == 0:
                    returns += done.reward
            self.credit += p.updates_per_step
            while self.credit >= 1:
                self.credit -= 1
                self._sample()
                found = self.learner.update()
                self.updates += 1
                if not (math.isfinite(found.critic) and math.isfinite(found.actor)):
                    self._stop(found)
                totals += (found.critic, found.actor, found.alpha, found.entropy)
                count += 1
        return float(returns.mean()), Losses(*(totals / count).tolist()) if count else None

    def _sample(self) -> None:
        batch, learner = self.learner.batch, self.learner
        if len(self.buffers) == 1:
            self.buffers[0].sample(batch, learner.generator)
            return
        dreamt = round(self.parameters.imagined_share * len(batch))
        for buffer, part in zip(self.buffers, (batch[dreamt:], batch[:dreamt]), strict=True):
            if len(part):
                buffer.sample(part, learner.generator)

    def _stop(self, found: Losses) -> None:
        folder = self.checkpoint.parent if self.checkpoint is not None else Path.cwd()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"nan-batch-{self.identity}.npz"
        np.savez(path, batch=self.learner.batch.numpy(), updates=self.updates)
        raise LossIsNotFinite(
            f"{self.real.name}: after {self.updates} updates the critics' loss is {found.critic}, the actor's {found.actor}. "
            f"The batch lies in {path}. Lower learning_rate ({self.parameters.learning_rate}) or reward_scale "
            f"({self.parameters.reward_scale})."
        )

    def _report(
        self,
        returns: float,
        losses: Losses | None,
        rate: float,
        evaluate: Callable[[SacPolicy], float] | None,
        progress: Callable[[dict[str, float | None]], None] | None,
    ) -> None:
        score = None
        if evaluate is not None:
            policy = self.policy(None)
            score = float(evaluate(policy))
            if self.best_score is None or score > self.best_score:
                self.best_score, self.best_flat = score, policy.flat
        real_steps = self.sets_done * self.real.n * self.real.steps
        row: dict[str, float | None] = {
            "real_steps": real_steps,
            "imagined_steps": real_steps * self.parameters.imagined_per_step,
            "updates": self.updates,
            "updates_per_second": rate,
            "reward": returns,
            "critic_loss": losses.critic if losses else None,
            "actor_loss": losses.actor if losses else None,
            "alpha": losses.alpha if losses else None,
            "entropy": losses.entropy if losses else None,
            "score": score,
        }
        self.history.append(row)
        if progress:
            progress(row)

    def policy(self, flat: np.ndarray | None) -> SacPolicy:
        """The actor of now, or that with the weights `flat`."""
        return SacPolicy(
            environment=self.real.name,
            observation_names=self.real.observation_names,
            action_names=self.real.action_names,
            mean=self.mean,
            scale=self.scale,
            action_low=self.low,
            action_high=self.high,
            hidden_units=self.parameters.hidden_units,
            flat=self.learner.actor.flat.numpy().copy() if flat is None else flat,
        )

    # Checkpoints lie between two sets of episodes, where no environment has a state.

    def _save(self, path: Path) -> None:
        import torch

        state = {
            "identity": self.identity,
            "learner": self.learner.state(),
            # A copy of what is filled: a view would be saved with all of its memory.
            "buffers": [(b.rows[: len(b)].clone(), b.written) for b in self.buffers],
            "rng": self.rng.bit_generator.state,
            "progress": (self.sets_done, self.updates, self.credit, self.seconds),
            "history": self.history,
            "best": (None if self.best_flat is None else torch.from_numpy(self.best_flat), self.best_score),
            "scaling": (torch.from_numpy(self.mean), torch.from_numpy(self.scale)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
        try:
            torch.save(state, temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _load(self, path: Path) -> None:
        import torch

        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:
            raise SacError(
                f"the checkpoint {path} cannot be read ({error}): delete it to begin anew"
            ) from error
        if state["identity"] != self.identity:
            raise SacError(
                f"the checkpoint {path} belongs to a training with other parameters or markets "
                f"({state['identity']}, this one is {self.identity}): delete it, or give this training another file"
            )
        self.learner.load(state["learner"])
        # A finished training has none.
        for buffer, (rows, written) in zip(self.buffers, state["buffers"], strict=bool(state["buffers"])):
            buffer.rows[: len(rows)] = rows
            buffer.written = written
        self.rng.bit_generator.state = state["rng"]
        self.sets_done, self.updates, self.credit, self.seconds = state["progress"]
        self.history = state["history"]
        best, self.best_score = state["best"]
        self.best_flat = None if best is None else best.numpy()
        self.mean, self.scale = (value.numpy() for value in state["scaling"])
