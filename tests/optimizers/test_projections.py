"""Fused projections: the same picture with and without LoRAs, where diffusers' own way loses them."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import tiny
import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig

import safelight
from safelight.errors import Conflict
from safelight.optimizers import OPTIMIZERS, projections
from safelight.optimizers.target import denoiser, target_of

MODELS = {"unet": tiny.sd, "sdxl": tiny.sdxl, "sd3": tiny.sd3, "flux": tiny.flux}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj"]


@pytest.fixture(params=MODELS, ids=list(MODELS))
def any_pipe(request):
    return MODELS[request.param]()


def draw(pipe):
    generator = torch.Generator().manual_seed(3)
    asked = {"num_inference_steps": 2, "width": 32, "height": 32, "generator": generator}
    return pipe("a cat", output_type="latent", **asked).images


def add_lora(pipe, name="style", seed=7):
    """A LoRA of the attention of the denoiser, strong enough to be seen."""
    torch.manual_seed(seed)
    model = denoiser(pipe)
    there = {part for part in TARGETS if any(key.endswith(part) for key, _ in model.named_modules())}
    model.add_adapter(LoraConfig(r=4, lora_alpha=32, init_lora_weights=False, target_modules=sorted(there)), name)


def fused(pipe):
    return safelight.optimize(pipe, "fused-qkv", width=32, height=32)


def assert_near(found, expected):
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def far_apart(found, expected):
    return (found - expected).abs().max() > 1e-3 * expected.abs().max()


# -- the picture -------------------------------------------------------------------------------------------------------


def test_the_picture_stays_and_most_projections_come_out_of_another_product(any_pipe):
    plain, names = draw(any_pipe), list(denoiser(any_pipe).state_dict())
    with fused(any_pipe) as opened:
        (status,) = opened.status()
        assert_near(draw(any_pipe), plain)
        assert len(denoiser(any_pipe).state_dict()) > len(names)
    spared, of = (int(word) for word in status.evidence.split() if word.isdigit())
    layers = [names for module in denoiser(any_pipe).modules() for names in projections.groups(module)]
    assert of == sum(map(len, layers))
    assert spared == of - len(layers)  # all but the first of each
    assert list(denoiser(any_pipe).state_dict()) == names
    assert torch.equal(draw(any_pipe), plain)


def test_the_layers_own_weights_are_not_used(any_pipe):
    target = target_of(any_pipe, tiny.cpu(), width=32, height=32)
    fusing = projections.fused_qkv(any_pipe, target)
    next(fusing)
    expected = draw(any_pipe)
    kept = {}
    for name, module in denoiser(any_pipe).named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_k", ".attn.to_q", ".attn.to_v")):
            kept[module] = module.weight.data
            module.weight.data = torch.full_like(module.weight, float("nan"))
    assert kept
    assert torch.equal(draw(any_pipe), expected)
    for module, weight in kept.items():
        module.weight.data = weight
    next(fusing, None)


def test_a_pipeline_that_nobody_keeps_has_its_weights_once(any_pipe):
    model, plain = denoiser(any_pipe), draw(any_pipe)
    weights, held = {name: p.clone() for name, p in model.named_parameters()}, held_bytes(model)
    target = replace(target_of(any_pipe, tiny.cpu(), width=32, height=32), disposable=True)
    fusing = projections.fused_qkv(any_pipe, target)
    next(fusing)
    assert held_bytes(model) <= held * 1.01  # biases are held twice
    assert_near(draw(any_pipe), plain)
    next(fusing, None)
    assert all(torch.equal(p, weights.pop(name)) for name, p in model.named_parameters())
    assert not weights
    assert torch.equal(draw(any_pipe), plain)


def held_bytes(model):
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}.values())


@pytest.mark.parametrize(
    ("name", "options"),
    [("attention-slicing", {"size": 0}), ("attention-backend", {"value": "flex"}), ("split-attention", {"chunk": 32})],
)
def test_slices_and_kernels_of_attention_combine_with_it(name, options, unet_pipe):
    plain, target = draw(unet_pipe), target_of(unet_pipe, tiny.cpu(), width=32, height=32)
    with ExitStack() as stack:
        proofs = [
            OPTIMIZERS["fused-qkv"].enter(stack, unet_pipe, target, {}),
            OPTIMIZERS[name].enter(stack, unet_pipe, target, options),
        ]
        assert_near(draw(unet_pipe), plain)
        assert all(proof.evidence() for proof in proofs)
    assert torch.equal(draw(unet_pipe), plain)


def test_it_compiles_into_one_graph():
    pipe = tiny.flux()
    model = pipe.transformer
    inputs = {
        "hidden_states": torch.randn(1, 64, 16),
        "encoder_hidden_states": torch.randn(1, 7, 32),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(64, 3),
        "txt_ids": torch.zeros(7, 3),
        "guidance": torch.tensor([1.0]),
        "return_dict": False,
    }
    with torch.inference_mode():
        plain = model(**inputs)[0]
        fusing = projections.fused_qkv(pipe, target_of(pipe, tiny.cpu(), width=32, height=32))
        proof = next(fusing)
        assert_near(model(**inputs)[0], plain)  # what the proof saw: nothing is counted inside a graph
        graph = torch.compile(model, backend="eager", fullgraph=True)
        for _ in range(2):
            assert_near(graph(**inputs)[0], plain)
    assert proof.evidence().startswith("12 of 18")
    next(fusing, None)


@pytest.mark.parametrize("calls", ["qkv", "vkq", "qqkv", "kvqkv"])
def test_any_order_of_calls_is_right(calls):
    torch.manual_seed(0)
    layer = torch.nn.Module()
    layer.to_q, layer.to_k, layer.to_v = (torch.nn.Linear(8, size) for size in (8, 4, 4))
    inputs = [torch.randn(2, 5, 8) for _ in range(2)]
    asked = [(getattr(layer, f"to_{letter}"), x) for letter in calls for x in inputs]
    expected = [linear(x) for linear, x in asked]
    with projections.fused(layer, projections.QKV), torch.inference_mode():
        found = [linear(x) for linear, x in asked]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert sorted(layer._modules) == ["to_k", "to_q", "to_v"]


# -- LoRAs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora_first", [True, False])
def test_diffusers_own_fusing_loses_a_lora(lora_first):
    pipe, plain = tiny.flux(), tiny.flux()
    add_lora(plain)
    for step in (add_lora, lambda pipe: pipe.transformer.fuse_qkv_projections())[:: 1 if lora_first else -1]:
        step(pipe)
    assert far_apart(draw(pipe), draw(plain))  # if not, diffusers has mended it


def test_diffusers_own_fusing_loses_the_normalization_of_sd3():
    torch.manual_seed(0)
    config = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 64}
    more = {"caption_projection_dim": 32, "pooled_projection_dim": 64, "in_channels": 4, "out_channels": 4}
    model = SD3Transformer2DModel(sample_size=16, qk_norm="rms_norm", pos_embed_max_size=16, **config, **more).eval()
    inputs = (torch.randn(1, 4, 16, 16), torch.randn(1, 7, 64), torch.randn(1, 64), torch.tensor([5.0]))
    with torch.no_grad():
        plain = model(*inputs)[0]
        model.fuse_qkv_projections()
        assert far_apart(model(*inputs)[0], plain)


def test_a_lora_loaded_before_keeps_its_effect(any_pipe):
    bare = draw(any_pipe)
    add_lora(any_pipe)
    plain = draw(any_pipe)
    assert far_apart(plain, bare)
    with fused(any_pipe):
        assert_near(draw(any_pipe), plain)
        denoiser(any_pipe).disable_adapters()
        assert_near(draw(any_pipe), bare)
        denoiser(any_pipe).enable_adapters()
        assert_near(draw(any_pipe), plain)
    assert torch.equal(draw(any_pipe), plain)


def test_a_lora_loaded_while_fused_has_its_effect(any_pipe):
    bare = draw(any_pipe)
    with fused(any_pipe):
        add_lora(any_pipe)
        planned = draw(any_pipe)
    plain = draw(any_pipe)
    assert far_apart(plain, bare)
    assert_near(planned, plain)


def test_the_scale_of_a_lora_can_change_and_the_lora_go_while_fused(unet_pipe, tmp_path):
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    bare, donor = draw(unet_pipe), tiny.sd()
    add_lora(donor, "default")
    layers = get_peft_model_state_dict(donor.unet, adapter_name="default")
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="style.safetensors")
    with fused(unet_pipe):
        unet_pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
        unet_pipe.set_adapters("style", 0.5)
        half = draw(unet_pipe)
        unet_pipe.unload_lora_weights()
        assert_near(draw(unet_pipe), bare)
    assert torch.equal(draw(unet_pipe), bare)
    unet_pipe.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    unet_pipe.set_adapters("style", 0.5)
    assert far_apart(half, bare)
    assert_near(half, draw(unet_pipe))


@pytest.mark.parametrize("name", ["fuse_lora", "unfuse_lora"])
def test_merging_a_lora_while_fused_is_refused(name, unet_pipe):
    add_lora(unet_pipe)
    plain = draw(unet_pipe)
    with fused(unet_pipe), pytest.raises(Conflict, match="call fuse_lora or unfuse_lora before, or leave it out"):
        getattr(unet_pipe, name)()
    assert torch.equal(draw(unet_pipe), plain)


def test_a_lora_merged_before_is_part_of_the_product(unet_pipe):
    add_lora(unet_pipe)
    unet_pipe.fuse_lora()
    plain = draw(unet_pipe)
    with fused(unet_pipe):
        assert_near(draw(unet_pipe), plain)


def test_quantized_layers_are_left_alone():
    class Linear4bit(torch.nn.Linear):
        pass

    layer = torch.nn.Module()
    layer.to_q, layer.to_k, layer.to_v = Linear4bit(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    assert projections.groups(layer) == []
