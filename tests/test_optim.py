"""The optimizers: LARS against its algorithm in plain loops, the schedules against the official codes' formulas."""

import math
from typing import NamedTuple

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from contrastive.optim import (
    LARS,
    TrainingLength,
    adamw_cosine,
    lars_cosine,
    sgd_cosine,
    warmup_cosine,
)


def test_lars_equals_algorithm_1_in_plain_loops() -> None:
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
    frozen_at_zero = nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS(
        [{"params": [weight, frozen_at_zero], "weight_decay": 0.1}, {"params": [bias]}], lr=0.5, trust_coefficient=0.01
    )
    w, b, z = weight.tolist(), bias.tolist(), frozen_at_zero.tolist()
    velocity_w = [[0.0] * 3 for _ in range(4)]
    velocity_b = [0.0] * 4
    velocity_z = [[0.0] * 2 for _ in range(2)]
    for step in range(3):
        for parameter in (weight, bias, frozen_at_zero):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        g = [
            [gij + 0.1 * wij for gij, wij in zip(gi, wi, strict=True)]
            for gi, wi in zip(weight.grad.tolist(), w, strict=True)
        ]
        norm_w = math.sqrt(sum(x * x for row in w for x in row))
        norm_g = math.sqrt(sum(x * x for row in g for x in row))
        for i in range(4):
            for j in range(3):
                velocity_w[i][j] = 0.9 * velocity_w[i][j] + 0.01 * norm_w / norm_g * g[i][j]
                w[i][j] -= 0.5 * velocity_w[i][j]
            velocity_b[i] = 0.9 * velocity_b[i] + bias.grad[i].item()
            b[i] -= 0.5 * velocity_b[i]
        norm_z = math.sqrt(sum(x * x for row in z for x in row))
        gz = [
            [gij + 0.1 * zij for gij, zij in zip(gi, zi, strict=True)]
            for gi, zi in zip(frozen_at_zero.grad.tolist(), z, strict=True)
        ]
        norm_gz = math.sqrt(sum(x * x for row in gz for x in row))
        ratio = 0.01 * norm_z / norm_gz if norm_z > 0 else 1.0
        for i in range(2):
            for j in range(2):
                velocity_z[i][j] = 0.9 * velocity_z[i][j] + ratio * gz[i][j]
                z[i][j] -= 0.5 * velocity_z[i][j]
        optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor(w))
    torch.testing.assert_close(bias.data, torch.tensor(b))
    torch.testing.assert_close(frozen_at_zero.data, torch.tensor(z))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_with_clip_is_larc_in_plain_loops(decay: float) -> None:
    weight, bias = nn.Parameter(torch.tensor([3.0, -4.0])[:, None]), nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = LARS([weight, bias], lr=1.0, weight_decay=decay, trust_coefficient=0.02, clip=True)
    w, b = [3.0, -4.0], [1.0, 2.0]
    velocity_w, velocity_b = [0.0, 0.0], [0.0, 0.0]
    bounded = []
    for lr, scale in [(0.5, 1.0), (0.5, 0.01), (0.001, 1.0), (2.0, 0.3)]:
        gradient = [1.0 * scale, 2.0 * scale]
        weight.grad, bias.grad = torch.tensor(gradient)[:, None], torch.tensor(gradient)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        update = [g + decay * x for g, x in zip(gradient, w, strict=True)]
        local = 0.02 * math.hypot(*w) / math.hypot(*update) / lr  # LARC: local rate / lr, at most 1
        bounded.append(local > 1)
        for i in range(2):
            velocity_w[i] = 0.9 * velocity_w[i] + min(local, 1.0) * update[i]
            velocity_b[i] = 0.9 * velocity_b[i] + gradient[i] + decay * b[i]
            w[i] -= lr * velocity_w[i]
            b[i] -= lr * velocity_b[i]
    assert set(bounded) == {False, True}  # both branches were taken
    torch.testing.assert_close(weight.data[:, 0], torch.tensor(w))
    torch.testing.assert_close(bias.data, torch.tensor(b))


def test_lars_with_clip_takes_a_plain_step_from_zero() -> None:
    weight = nn.Parameter(torch.zeros(2, 1))
    weight.grad = torch.tensor([[1.0], [2.0]])
    LARS([weight], lr=0.5, clip=True).step()
    assert weight.flatten().tolist() == [-0.5, -1.0]


def test_lars_resumes_from_its_state() -> None:
    def steps(optimizer: LARS, parameter: nn.Parameter, numbers: range) -> None:
        for n in numbers:
            parameter.grad = torch.full_like(parameter, n + 1.0)
            optimizer.step()

    straight, resumed = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    steps(LARS([straight], lr=0.1), straight, range(4))
    first = LARS([resumed], lr=0.1)
    steps(first, resumed, range(2))
    second = LARS([resumed], lr=0.1)
    second.load_state_dict(first.state_dict())
    steps(second, resumed, range(2, 4))
    assert straight.equal(resumed)


def test_the_schedule_warms_up_linearly_and_falls_along_half_a_cosine() -> None:
    factors = [warmup_cosine(step, warmup_steps=4, steps=12) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).requires_grad_()


@pytest.mark.parametrize(
    ("make", "decay_of_the_rest"),
    [
        (sgd_cosine(0.1, weight_decay=0.3), 0.3),
        (sgd_cosine(0.1, weight_decay=0.3, decay_bias_and_norm=False), 0.0),
        (adamw_cosine(0.1, weight_decay=0.3, warmup_epochs=1), 0.0),
        (lars_cosine(0.1, weight_decay=0.3, warmup_epochs=1), 0.0),
    ],
    ids=["sgd", "sgd_without_bias_and_norm", "adamw", "lars"],
)
def test_weight_decay_falls_where_the_paper_has_it(make, decay_of_the_rest: float) -> None:
    module = network()
    module[0].weight.requires_grad_(False)  # frozen: in no group
    optimizer, _ = make(module, TrainingLength(steps=100, steps_per_epoch=10))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    expected = {id(p): 0.3 if p.ndim > 1 else decay_of_the_rest for p in module.parameters() if p.requires_grad}
    assert decay == expected


def test_the_rate_follows_warm_up_epochs_in_optimizer_steps() -> None:
    module = network()
    optimizer, schedule = lars_cosine(2.0, warmup_epochs=0.5)(module, TrainingLength(steps=20, steps_per_epoch=10))
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 14 / 15))


class Setting(NamedTuple):
    lr: float
    weight_decay: float


def course(make, module: nn.Module, length: TrainingLength) -> list[dict[str, Setting]]:
    """What holds for each parameter, step by step."""
    optimizer, schedule = make(module, length)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    steps = []
    for _ in range(length.steps):
        steps.append(
            {
                names[id(parameter)]: Setting(group["lr"], group["weight_decay"])
                for group in optimizer.param_groups
                for parameter in group["params"]
            }
        )
        optimizer.step()
        schedule.step()
    return steps


def swav_schedule(base_lr: float, final_lr: float, steps: int) -> list[float]:
    """``main_swav.py``: ``cosine_lr_schedule``, for ``steps`` steps after the warm-up."""
    return [final_lr + 0.5 * (base_lr - final_lr) * (1 + math.cos(math.pi * t / steps)) for t in range(steps)]


@pytest.mark.parametrize(
    ("make", "final_lr"),
    [
        (lars_cosine(4.8, final_lr=0.0048, warmup_epochs=2), 0.0048),  # SwAV, swav_800ep_pretrain.sh
        (adamw_cosine(4.8, final_lr=1e-6, warmup_epochs=2), 1e-6),  # DINO's --min_lr
        (sgd_cosine(4.8, final_lr=4.8, warmup_epochs=2), 4.8),
        (sgd_cosine(4.8, warmup_epochs=2), 0.0),
    ],
    ids=["lars", "adamw", "sgd constant", "sgd to zero"],
)
def test_the_cosine_ends_at_the_final_rate_as_in_swav(make, final_lr: float) -> None:
    rates = [settings["0.weight"].lr for settings in course(make, network(), TrainingLength(60, steps_per_epoch=5))]
    assert rates[:10] == pytest.approx([4.8 * (k + 1) / 10 for k in range(10)])
    assert rates[10:] == pytest.approx(swav_schedule(4.8, final_lr, 50))


def test_weight_decay_moves_along_dinos_cosine_from_the_first_step() -> None:
    def cosine_scheduler(base_value: float, final_value: float, steps: int) -> list[float]:  # DINO's utils.py
        return [
            final_value + 0.5 * (base_value - final_value) * (1 + math.cos(math.pi * i / steps)) for i in range(steps)
        ]

    for first, last in [(0.04, 0.4), (0.0, 0.4), (0.4, 0.0)]:
        make = adamw_cosine(1e-3, weight_decay=first, final_weight_decay=last, warmup_epochs=2)
        steps = course(make, network(), TrainingLength(40, steps_per_epoch=5))
        assert [s["0.weight"].weight_decay for s in steps] == pytest.approx(cosine_scheduler(first, last, 40))
        assert {s[name].weight_decay for s in steps for name in ("0.bias", "1.weight", "1.bias")} == {0.0}
    assert {s["0.weight"].weight_decay for s in course(adamw_cosine(1e-3), network(), TrainingLength(90, 1))} == {0.1}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_has_plain_or_nesterovs_momentum(nesterov: bool) -> None:
    """Sutskever et al. 2013, as torch's documentation writes it: v = m v + g, and the step is g + m v, or v."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module = nn.ParameterList([weight])
    optimizer, _ = sgd_cosine(0.1, weight_decay=0.0, nesterov=nesterov)(module, TrainingLength(10, 5))
    expected, velocity = weight.detach().clone(), torch.zeros(1, 2)
    for gradient in (torch.tensor([[0.5, 1.0]]), torch.tensor([[-1.0, 2.0]])):
        weight.grad = gradient
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        expected -= 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
    torch.testing.assert_close(weight.detach(), expected)


def with_predictor() -> nn.Module:
    parts = {"encoder": nn.Linear(3, 4), "predictor": network(), "momentum_encoder": nn.Linear(3, 4)}
    parts["momentum_encoder"].requires_grad_(False)
    return nn.ModuleDict(parts)


def test_simsiams_predictor_keeps_its_rate() -> None:
    def adjust_learning_rate(lr: float, epoch: int, epochs: int, fix_lr: bool) -> float:  # main_simsiam.py
        return lr if fix_lr else lr * 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))

    steps = course(sgd_cosine(0.05, fixed_lr=("predictor",)), with_predictor(), TrainingLength(30, steps_per_epoch=3))
    for epoch in range(10):  # SimSiam sets the rate once an epoch, we at every step
        for name, setting in steps[3 * epoch].items():
            fixed = name.startswith("predictor.")
            assert setting == pytest.approx((adjust_learning_rate(0.05, epoch, 10, fixed), 1e-4))
    assert len(steps[0]) == 2 + 6  # every trained parameter once; the momentum encoder never


def test_what_is_fixed_knows_no_warm_up() -> None:
    make = sgd_cosine(0.05, fixed_lr=["predictor"], warmup_epochs=2, final_lr=0.01)
    steps = course(make, with_predictor(), TrainingLength(30, steps_per_epoch=3))
    assert {settings["predictor.0.weight"].lr for settings in steps} == {0.05}
    assert steps[0]["encoder.weight"].lr == pytest.approx(0.05 / 6)


def test_biases_and_norms_have_barlow_twins_own_rate() -> None:
    def adjust_learning_rate(step: int, max_steps: int, warmup_steps: int, base_lr: float) -> float:  # main.py
        step, max_steps = step - warmup_steps, max_steps - warmup_steps
        q = 0.5 * (1 + math.cos(math.pi * step / max_steps))
        return base_lr * q + base_lr * 0.001 * (1 - q)

    base = 2048 / 256
    make = lars_cosine(0.2 * base, bias_and_norm_lr=0.0048 * base, final_lr=0.001 * 0.2 * base, warmup_epochs=2)
    steps = course(make, network(), TrainingLength(60, steps_per_epoch=5))
    for step in range(10, 60):
        expected = adjust_learning_rate(step, 60, 10, base)
        assert steps[step]["0.weight"].lr == pytest.approx(0.2 * expected)
        for name in ("0.bias", "1.weight", "1.bias"):
            assert steps[step][name].lr == pytest.approx(0.0048 * expected)
    assert steps[0]["0.weight"].lr == pytest.approx(0.2 * base / 10)
    assert steps[0]["0.bias"].lr == pytest.approx(0.0048 * base / 10)


def vit(num_classes: int) -> nn.Module:
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=num_classes)


def timm_scales(model: nn.Module, layer_decay: float) -> dict[str, Setting]:
    groups = param_groups_layer_decay(model, weight_decay=0.3, layer_decay=layer_decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: Setting(g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("head_within", [False, True])
def test_layer_decay_equals_timms_with_the_head_beside_the_encoder_or_within(head_within: bool) -> None:
    module = nn.ModuleDict({"encoder": vit(5)} if head_within else {"encoder": vit(0), "head": nn.Linear(8, 5)})
    module["encoder"].patch_embed.requires_grad_(False)
    reference = vit(5)
    reference.patch_embed.requires_grad_(False)
    make = adamw_cosine(2.0, weight_decay=0.3, layer_decay=0.75, warmup_epochs=0)
    first = course(make, module, TrainingLength(10, steps_per_epoch=5))[0]
    ours = {name.removeprefix("encoder."): Setting(s.lr / 2.0, s.weight_decay) for name, s in first.items()}
    expected = timm_scales(reference, 0.75)
    assert ours.keys() == expected.keys()
    for name, setting in expected.items():
        assert ours[name] == pytest.approx(setting), name


def test_layer_decay_is_a_power_of_the_layers_above_at_every_step() -> None:
    module = nn.ModuleDict({"encoder": vit(0), "head": nn.Linear(8, 5)})
    make = adamw_cosine(2.0, layer_decay=0.5, warmup_epochs=1, final_lr=0.2)
    for settings in course(make, module, TrainingLength(20, steps_per_epoch=5)):
        full = settings["head.weight"].lr
        for block in range(3):  # of depth 3
            assert settings[f"encoder.blocks.{block}.attn.qkv.weight"].lr == pytest.approx(full * 0.5 ** (3 - block))
        assert settings["encoder.pos_embed"].lr == pytest.approx(full * 0.5**4)
    assert full == pytest.approx(swav_schedule(2.0, 0.2, 15)[-1])


def test_the_first_group_has_the_weights_at_the_full_rate() -> None:
    module = nn.ModuleDict({"encoder": vit(0), "head": nn.Linear(8, 5)})
    optimizer, _ = adamw_cosine(2.0, layer_decay=0.5, warmup_epochs=0)(module, TrainingLength(10, 5))
    assert optimizer.param_groups[0]["params"] == [module["head"].weight]
    optimizer, _ = sgd_cosine(2.0, fixed_lr=("encoder",))(with_predictor(), TrainingLength(10, 5))
    assert [p.shape for p in optimizer.param_groups[0]["params"]] == [(4, 3), (2, 4)]  # the predictor's


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sgd_cosine(0.0), "lr must be positive, got 0.0"),
        (lambda: lars_cosine(0.1, weight_decay=-1), "weight_decay must be zero or more, got -1"),
        (lambda: sgd_cosine(0.1, momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: adamw_cosine(0.1, warmup_epochs=-2), "warmup_epochs must be zero or more, got -2"),
        (lambda: lars_cosine(0.1, momentum=-0.1), r"momentum must lie in \[0, 1\), got -0.1"),
        (lambda: adamw_cosine(0.1, betas=(1.0, 0.95)), r"betas\[0\] must lie in \[0, 1\), got 1.0"),
        (lambda: adamw_cosine(0.1, betas=(0.9, 1.5)), r"betas\[1\] must lie in \[0, 1\), got 1.5"),
        (lambda: sgd_cosine(0.1, final_lr=0.2), r"final_lr must lie between zero and lr=0.1, got 0.2"),
        (lambda: lars_cosine(0.1, final_lr=-0.1), r"final_lr must lie between zero and lr=0.1, got -0.1"),
        (lambda: lars_cosine(0.1, bias_and_norm_lr=0.0), "bias_and_norm_lr must be positive, got 0.0"),
        (lambda: adamw_cosine(0.1, final_weight_decay=-1), "final_weight_decay must be zero or more, got -1"),
        (lambda: adamw_cosine(0.1, layer_decay=0.0), r"layer_decay must lie in \(0, 1\], got 0.0"),
        (lambda: adamw_cosine(0.1, layer_decay=1.1), r"layer_decay must lie in \(0, 1\], got 1.1"),
        (
            lambda: adamw_cosine(0.1, layer_decay=0.75, warmup_epochs=0)(with_predictor(), TrainingLength(50, 10)),
            r"layer_decay needs an encoder that says which layers it has, by timm's group_matcher, and that of "
            r"ModuleDict \(Linear\) does not. Use a timm model, or layer_decay=1",
        ),
        (
            lambda: adamw_cosine(0.1, layer_decay=0.75, warmup_epochs=0)(network(), TrainingLength(50, 10)),
            r"that of Sequential \(NoneType\) does not",
        ),
        (
            lambda: sgd_cosine(0.1, fixed_lr=("predictor", "head"))(with_predictor(), TrainingLength(50, 10)),
            r"fixed_lr names 'head', which is no child of ModuleDict that trains. Those are \['encoder', 'predictor'\]",
        ),
        (
            lambda: sgd_cosine(0.1, fixed_lr=("momentum_encoder",))(with_predictor(), TrainingLength(50, 10)),
            "fixed_lr names 'momentum_encoder', which is no child of ModuleDict that trains",
        ),
        (
            lambda: lars_cosine(0.1, warmup_epochs=10)(network(), TrainingLength(50, 10)),
            "warmup_epochs=10 takes 100 optimizer steps, but the run has only 50. Train longer or shorten the warm-up",
        ),
    ],
)
def test_bad_numbers_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
