"""What lies where. On a CPU every optimizer is applied directly, with the CPU as the device that it copies to."""

from contextlib import ExitStack, contextmanager

import pytest
import test_optimizers as contract
import tiny
import torch

import safelight
from optimizers import off_placement
from safelight.errors import DoesNotApply, EnvironmentProblem, UnknownName, UsageError
from safelight.optimizers import OPTIMIZERS, encoders, grouped, weights
from safelight.optimizers.placement import Layers, _filed, after, before
from safelight.optimizers.precision import kept_tensors
from safelight.optimizers.registry import swapped
from safelight.optimizers.target import models, target_of
from safelight.optimizers.weights import InFile, OnHost, Weights, free, on_cpu, size, storages
from safelight.probe.device import Device

ON_CARDS = ["model-offload", "sequential-offload", "group-offload"]
CARD = Device("cuda", 1, "a card", 24 * 2**30, 20 * 2**30)


@contextmanager
def applied(name, pipe, disposable=False, **options):
    """Past `fits`, as on a card; the device is the CPU."""
    target = target_of(pipe, tiny.cpu(), width=32, height=32, disposable=disposable)
    with ExitStack() as stack:
        yield OPTIMIZERS[name].enter(stack, pipe, target, {**OPTIMIZERS[name].defaults(), **options})


def numbers(pipe):
    return {f"{name}.{key}": t.clone() for name, m in models(pipe).items() for key, t in m.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ON_CARDS)
def test_a_placement_moves_gives_the_same_picture_and_is_undone(name, pipe):
    plain, state = contract.draw(pipe), contract.snapshot(pipe)
    with applied(name, pipe) as proof:
        assert proof.evidence() == ""
        planned = contract.draw(pipe)
        assert "cpu" in proof.evidence()
        proof.begin(pipe)
        assert proof.evidence() == ""
    assert torch.equal(planned, plain)
    assert contract.snapshot(pipe) == state
    assert torch.equal(contract.draw(pipe), plain)


@pytest.mark.parametrize("name", ON_CARDS)
def test_a_placement_whose_inside_is_switched_off_gives_no_evidence(name, pipe):
    with off_placement.OFF[name](), applied(name, pipe) as proof:
        contract.draw(pipe)
        assert proof.evidence() == ""


@pytest.mark.parametrize("name", ON_CARDS)
def test_a_run_that_breaks_off_leaves_nothing_lent_behind(name, unet_pipe):
    plain, state = contract.draw(unet_pipe), contract.snapshot(unet_pipe)
    hook = unet_pipe.unet.up_blocks[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with applied(name, unet_pipe), pytest.raises(ZeroDivisionError):
        contract.draw(unet_pipe)
    hook.remove()
    assert contract.snapshot(unet_pipe) == state
    assert torch.equal(contract.draw(unet_pipe), plain)


@pytest.mark.parametrize("name", [*ON_CARDS, "streamed-blocks"])
def test_on_a_cpu_there_is_nothing_to_move(name, unet_pipe):
    with pytest.raises(DoesNotApply, match="needs a card: everything lies in this memory already"):
        safelight.optimize(unet_pipe, name)


@pytest.mark.parametrize("name", ON_CARDS)
def test_a_placement_fits_a_card(name, unet_pipe):
    target = target_of(unet_pipe, CARD, width=32, height=32)
    assert OPTIMIZERS[name].fits(target, **OPTIMIZERS[name].defaults()) is None


@pytest.mark.parametrize("name", [*ON_CARDS, "disk-offload"])
def test_what_is_offloaded_already_is_refused(name, unet_pipe):
    unet_pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(UsageError, match="offloaded already"), applied(name, unet_pipe):
        pass


def test_models_take_turns_and_lie_where_they_run_on_the_device_asked_for(pipe):
    asked = []

    def copies(device):
        asked.append(device)
        return lambda tensor: tensor.to("cpu", copy=True)

    with swapped(weights, copies=copies), applied("model-offload", pipe) as proof:
        contract.draw(pipe)
        said = proof.evidence()
    assert set(asked) == {"cpu"}
    for name in models(pipe):
        assert name in said


def test_the_device_of_a_placement_is_the_one_of_the_target(unet_pipe):
    with applied("model-offload", unet_pipe):
        assert unet_pipe._execution_device == torch.device("cpu")
    meta = Device("meta", 0, "nowhere", 0, 0)
    target = target_of(unet_pipe, meta, width=32, height=32)
    with ExitStack() as stack:
        OPTIMIZERS["model-offload"].enter(stack, unet_pipe, target, {})
        assert unet_pipe._execution_device == torch.device("meta")
        assert unet_pipe.device == torch.device("cpu")


def test_the_models_are_on_the_device_in_their_turn_and_away_before_and_after(unet_pipe):
    """On the device "meta" nothing is computed, but it shows which weights came there."""
    meta = Device("meta", 0, "nowhere", 0, 0)
    target = target_of(unet_pipe, meta, width=32, height=32)
    with ExitStack() as stack:
        OPTIMIZERS["model-offload"].enter(stack, unet_pipe, target, {})
        seen = []
        entered = [unet_pipe.text_encoder.final_layer_norm, unet_pipe.unet.conv_out, unet_pipe.vae.decoder.conv_out]
        hooks = [module.register_forward_hook(lambda *_: seen.append(devices(unet_pipe))) for module in entered]
        unet_pipe.text_encoder(torch.zeros(1, 7, dtype=torch.long, device="meta"))
        unet_pipe.unet(torch.zeros(1, 4, 16, 16, device="meta"), 1, torch.zeros(1, 7, 32, device="meta"))
        unet_pipe.vae.decode(torch.zeros(1, 4, 16, 16, device="meta"))
        for hook in hooks:
            hook.remove()
    away = dict.fromkeys(models(unet_pipe), "cpu")
    assert seen == [{**away, name: "meta"} for name in ("text_encoder", "unet", "vae")]
    assert set(devices(unet_pipe).values()) == {"cpu"}


def devices(pipe):
    return {name: next(model.parameters()).device.type for name, model in models(pipe).items()}


@pytest.mark.parametrize("name", [*ON_CARDS, "disk-offload", "streamed-blocks"])
def test_a_vae_may_be_run_in_another_format_for_one_picture(name):
    """As the session does with a VAE that overflows, or that gave a black picture."""
    pipe = tiny.flux() if name == "streamed-blocks" else tiny.sd3()  # the other has two blocks only
    tensors, latents = Weights.of(models(pipe).values()).now(), torch.ones(1, 4, 16, 16, dtype=torch.float64)
    options = {"budget_gib": 0.85 * Weights.of([pipe.transformer]).bytes / 2**30} if name == "streamed-blocks" else {}

    def in_float64():
        with torch.inference_mode(), kept_tensors(pipe):
            pipe.vae.to(dtype=torch.float64)
            return pipe.vae.decode(latents, return_dict=False)[0]

    plain, drawn = in_float64(), contract.draw(pipe)
    with applied(name, pipe, **options):
        for _ in range(2):
            assert torch.equal(contract.draw(pipe), drawn)
            assert torch.equal(in_float64(), plain)
            assert pipe.vae.dtype in (torch.float32, torch.float64)
    assert torch.equal(contract.draw(pipe), drawn)
    assert all(a is b for a, b in zip(tensors, Weights.of(models(pipe).values()).now(), strict=True))


def test_buffers_that_are_put_back_late_do_not_stay():
    """kept_tensors is entered while the denoiser has its turn, and left in the VAE's."""
    pipe = tiny.sd3()
    tensors = Weights.of(models(pipe).values()).now()
    with applied("model-offload", pipe):
        latents = torch.ones(1, 4, 16, 16)
        contract.draw(pipe)
        pipe.text_encoder(torch.arange(7)[None])
        with torch.inference_mode(), kept_tensors(pipe):
            pipe.vae.decode(latents)
        drawn = contract.draw(pipe)
    assert torch.equal(contract.draw(pipe), drawn)
    assert all(a is b for a, b in zip(tensors, Weights.of(models(pipe).values()).now(), strict=True))


# -- a pipeline that is on a card already ------------------------------------------------------------------------------


def test_weights_of_a_card_come_to_the_cpu_and_their_memory_is_given_back_and_taken_again(pipe):
    kept, objects = numbers(pipe), Weights.of(models(pipe).values()).now()
    with on_cpu(pipe, elsewhere=lambda t: True, copy=lambda t: t.to("cpu", copy=True)) as freed:
        assert freed == sum(s.nbytes() for s in storages(Weights.of(models(pipe).values()).now()))
        assert all(storage.nbytes() == 0 for storage in storages(objects))
        assert same(numbers(pipe), kept)
    assert all(a is b for a, b in zip(objects, Weights.of(models(pipe).values()).now(), strict=True))
    assert same(numbers(pipe), kept)


def test_weights_on_the_cpu_stay_where_they_are(pipe):
    state = contract.snapshot(pipe)
    with on_cpu(pipe) as freed:
        assert freed == 0
        assert contract.snapshot(pipe) == state


def test_an_optimizer_that_holds_on_to_tensors_gets_its_numbers_back(unet_pipe):
    kept = numbers(unet_pipe)
    with kept_tensors(unet_pipe), on_cpu(unet_pipe, lambda t: True, lambda t: t.to("cpu", copy=True)):
        pass
    assert same(numbers(unet_pipe), kept)


# -- files -------------------------------------------------------------------------------------------------------------


def encoded(encoder):
    with torch.inference_mode():
        return encoder(torch.arange(7)[None])[0]


def to_disk(model, folder, level):
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    apply_group_offloading(model, cpu, cpu, level, num_blocks_per_group=1, offload_to_disk_path=str(folder))


def clip(seed):
    torch.manual_seed(seed)
    return tiny.clip_text()


def test_diffusers_takes_another_models_files_for_its_own(tmp_path):
    """Why disk-offload is ours."""
    one, other = clip(1), clip(2)
    first, second = encoded(one), encoded(other)
    to_disk(one, tmp_path, "leaf_level")
    to_disk(other, tmp_path, "leaf_level")
    assert torch.equal(encoded(one), first)
    assert not torch.allclose(encoded(other), second, atol=1e-2)


def test_diffusers_mixes_the_two_clip_encoders_of_sd3_on_disk_and_ours_does_not(tmp_path):
    pipe = tiny.sd3()
    plain = contract.draw(pipe)
    with applied("disk-offload", pipe, folder=str(tmp_path)) as proof:
        assert torch.equal(contract.draw(pipe), plain)
        assert proof.evidence()
    cpu = torch.device("cpu")
    pipe.enable_group_offload(cpu, cpu, "leaf_level", offload_to_disk_path=str(tmp_path))
    assert not torch.allclose(contract.draw(pipe), plain, atol=1e-2)


def test_diffusers_spoils_tied_weights_on_disk(tmp_path):
    t5 = tiny.flux().text_encoder_2
    plain = encoded(t5)
    to_disk(t5, tmp_path, "leaf_level")
    assert not torch.allclose(encoded(t5), plain, atol=1e-2, equal_nan=False)


def test_diffusers_cannot_put_channels_last_weights_on_disk_and_leaves_its_files(tmp_path):
    vae = tiny.vae()
    to_disk(vae, tmp_path, "leaf_level")
    assert list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="non contiguous"):
        to_disk(tiny.vae().to(memory_format=torch.channels_last), tmp_path / "other", "leaf_level")


@pytest.mark.parametrize("layers", [False, True], ids=["as on a CPU", "as on a card"])
def test_two_encoders_of_one_class_in_one_folder_keep_their_own_weights(tmp_path, layers):
    one, other, t5 = clip(1), clip(2), tiny.flux().text_encoder_2
    vae = tiny.vae().to(memory_format=torch.channels_last)
    plain = [encoded(model) for model in (one, other, t5)]
    with ExitStack() as stack:
        files = [stack.enter_context(_filed(model, str(tmp_path))) for model in (one, other, t5, vae)]
        assert [file.away_bytes() for file in files] == [file.weights.bytes for file in files]
        if layers:
            stack.enter_context(hooked(Layers.of([one, other, t5, vae], "cpu")))
        assert all(torch.equal(encoded(m), was) for m, was in zip((one, other, t5), plain, strict=True))
    assert all(torch.equal(encoded(m), was) for m, was in zip((one, other, t5), plain, strict=True))
    assert not list(tmp_path.iterdir())
    assert vae.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@contextmanager
def hooked(layers):
    with before(layers.units, layers.bring), after(layers.units, layers.send_away):
        yield
    layers.close()


def test_weights_in_a_file_have_no_memory_of_their_own_and_come_back_into_the_same_tensors(pipe, tmp_path):
    kept, objects = numbers(pipe), Weights.of(models(pipe).values()).now()
    with applied("disk-offload", pipe, folder=str(tmp_path)):
        assert sum(storage.nbytes() for storage in storages(objects)) == 0
        assert len(list(tmp_path.iterdir())) == len(models(pipe))
        assert same(numbers(pipe), kept)
    assert not list(tmp_path.iterdir())
    assert all(a is b for a, b in zip(objects, Weights.of(models(pipe).values()).now(), strict=True))
    assert same(numbers(pipe), kept)


def test_weights_that_are_mapped_from_the_models_own_files_can_be_offloaded(folder):
    plain = contract.draw(loaded(folder))
    pipe = loaded(folder)
    assert not next(pipe.unet.parameters()).untyped_storage().resizable()
    kept = numbers(pipe)
    with applied("disk-offload", pipe) as proof:
        assert torch.equal(contract.draw(pipe), plain)
        assert proof.evidence()
    assert same(numbers(pipe), kept)
    assert torch.equal(contract.draw(pipe), plain)


def loaded(folder):
    from safelight.run.load import pipeline

    return pipeline(str(folder))[0]


def test_a_folder_that_is_not_there_is_refused(unet_pipe, tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        safelight.optimize(unet_pipe, f"disk-offload={tmp_path / 'gone'}")


def test_a_file_that_cannot_be_written_is_an_error_and_changes_nothing(unet_pipe):
    state = contract.snapshot(unet_pipe)

    def full(self):
        raise OSError("No space left on device")

    with swapped(InFile, _write=full), pytest.raises(EnvironmentProblem, match="No space left"):
        safelight.optimize(unet_pipe, "disk-offload")
    assert contract.snapshot(unet_pipe) == state


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["leaf", "block"])
@pytest.mark.parametrize("disposable", [False, True], ids=["kept", "disposable"])
def test_group_offload_leaves_nothing_behind(pipe, level, disposable):
    plain, state = contract.draw(pipe), contract.snapshot(pipe)
    with applied("group-offload", pipe, disposable, level=level) as proof:
        assert torch.equal(contract.draw(pipe), plain)
        assert "groups came to cpu" in proof.evidence()
    assert contract.snapshot(pipe) == state
    assert torch.equal(contract.draw(pipe), plain)


def test_group_offload_leaves_the_hooks_of_a_step_cache_alone():
    from diffusers import FirstBlockCacheConfig

    pipe = tiny.flux()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    plain, state = contract.draw(pipe), contract.snapshot(pipe)
    with applied("group-offload", pipe):
        assert torch.equal(contract.draw(pipe), plain)
    assert contract.snapshot(pipe) == state
    assert torch.equal(contract.draw(pipe), plain)
    pipe.transformer.disable_cache()


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"level": "layer"}, UnknownName, "group-offload level"),
        ({"level": "block", "blocks": 0}, UsageError, "1 or more"),
        ({"level": "block", "blocks": 2}, UsageError, "stream=false"),
        ({"stream": False, "record_stream": True}, UsageError, "are for stream=true"),
    ],
)
def test_group_offload_refuses_options_that_diffusers_would_bend(unet_pipe, options, kind, words):
    target = target_of(unet_pipe, CARD, width=32, height=32)
    with pytest.raises(kind, match=words):
        OPTIMIZERS["group-offload"].fits(target, **{**OPTIMIZERS["group-offload"].defaults(), **options})


def test_a_class_that_diffusers_cannot_offload_in_groups_is_refused():
    from diffusers import VQModel

    pipe = tiny.sd()
    pipe.vae = VQModel(block_out_channels=[32], norm_num_groups=32)
    reason = OPTIMIZERS["group-offload"].fits(
        target_of(pipe, CARD, width=32, height=32), **OPTIMIZERS["group-offload"].defaults()
    )
    assert reason == "diffusers says that VQModel cannot be offloaded in groups"


def test_a_vae_whose_decode_no_hook_sees_is_offloaded_by_leaves():
    from diffusers import AutoencoderTiny

    assert grouped.level_of(AutoencoderTiny(), "block") == "leaf_level"
    assert grouped.level_of(tiny.vae(), "block") == "block_level"


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["file", "host"])
def test_text_encoders_are_away_while_denoising_and_come_back_for_a_new_prompt(pipe, tmp_path, where):
    parts = [model for name, model in models(pipe).items() if name.startswith("text_encoder")]
    kept, all_weights = numbers(pipe), Weights.of(parts)
    own = storages(all_weights.now())
    stored = InFile(all_weights, tmp_path / "weights") if where == "file" else OnHost(all_weights)
    state = encoders.Away(stored)
    for _ in range(2):
        state.leave()
        assert sum(storage.nbytes() for storage in own) == 0
        assert stored.away_bytes() == stored.weights.bytes == size(all_weights.home) > 0
        assert same(numbers(pipe), kept)
        state.come()
    assert state.times_back == 2
    stored.close()
    assert same(numbers(pipe), kept)
    assert not list(tmp_path.iterdir())


def test_a_cached_prompt_does_not_bring_the_text_encoders_back(unet_pipe):
    with safelight.optimize(unet_pipe, "prompt-cache,drop-text-encoders") as session:
        for prompt, back in (("a dog", 1), ("a dog", 0), ("a cow", 1)):
            session.generate(prompt, steps=2, seed=1, width=32, height=32)
            said = {status.name: status.evidence for status in session.status()}["drop-text-encoders"]
            assert said.endswith(f"back {back} times")


def test_weights_under_another_optimizers_hand_are_really_given_back(unet_pipe):
    """channels-last keeps every tensor, to put it back; the memory goes all the same."""
    own = storages(unet_pipe.text_encoder.parameters())
    kept = numbers(unet_pipe)
    with safelight.optimize(unet_pipe, "channels-last,drop-text-encoders", width=32, height=32):
        assert sum(storage.nbytes() for storage in own) == 0
    assert same(numbers(unet_pipe), kept)


def test_memory_that_is_not_ours_is_not_given_back():
    assert free(torch.frombuffer(bytearray(64), dtype=torch.uint8).untyped_storage()) == 0
