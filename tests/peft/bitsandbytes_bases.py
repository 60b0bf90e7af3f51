"""Makes tests/data/bitsandbytes: tiny bases that bitsandbytes quantized, and what it makes of them.

    python tests/peft/bitsandbytes_bases.py

Needs torch, transformers, peft, bitsandbytes and accelerate (written against 2.15, 5.24, 0.21.2, 0.50.2, 1.15), no GPU. The
data were made so; other versions may write other companions, and their bytes have to be compared before committing.

    llama, gpt2          float bases (bf16)
    NAME/                a base as transformers saves it after loading with BitsAndBytesConfig
    adapter              LoRA over the Llama
    expected.json        SHA-256 of every dequantized weight (f32, as the float checkpoint lays it out), by base
    expected.safetensors NAME: logits of the dequantized base with the adapter, in f32
"""

import hashlib
import json
import pathlib
import shutil
import warnings

import bitsandbytes
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
HERE = pathlib.Path(__file__).resolve().parent.parent / "data" / "bitsandbytes"

# Rows are whole blocks of 64: bitsandbytes 0.50.2's CPU code has blocks begin anew in every row, its GPU code and its
# plain torch code do not. The feedforward matrices have more than 256 blocks, so that the scales have two.
LLAMA = transformers.LlamaConfig(
    vocab_size=32, hidden_size=64, intermediate_size=320, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
GPT2 = transformers.GPT2Config(
    vocab_size=32, n_embd=64, n_layer=1, n_head=2, n_positions=32, n_inner=64, bos_token_id=1, eos_token_id=2)
QUANTIZED = {
    "nf4_double": ("llama", dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)),
    "fp4": ("llama", dict(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "int8": ("llama", dict(load_in_8bit=True)),
    "gpt2_nf4": ("gpt2", dict(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
}
IDS = torch.tensor([[1, 5, 9, 30, 7, 7, 12, 3]])


def dequantized(model):
    """Every weight of a model that bitsandbytes quantized, by name, in the layout of a float checkpoint."""
    out = {}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            w = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            scb = module.state.SCB if module.state.SCB is not None else module.weight.SCB
            w = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, scb)
        else:
            continue
        conv1d = isinstance(model, transformers.GPT2LMHeadModel)
        out[f"{name}.weight"] = (w.T if conv1d else w).float().contiguous()
    return out


def main():
    torch.manual_seed(11)
    shutil.rmtree(HERE, ignore_errors=True)
    for name, config in [("llama", LLAMA), ("gpt2", GPT2)]:
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.ndim == 1))
        model.to(torch.bfloat16).save_pretrained(HERE / name)
    base = AutoModelForCausalLM.from_pretrained(HERE / "llama", dtype=torch.float32)
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    tuned = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM",
                                            init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = "llama"
    tuned.peft_config["default"].target_modules = sorted(targets)
    tuned.save_pretrained(HERE / "adapter")
    digests, logits = {}, {}
    for name, (float_base, options) in QUANTIZED.items():
        quantized = AutoModelForCausalLM.from_pretrained(
            HERE / float_base, quantization_config=BitsAndBytesConfig(**options), dtype=torch.bfloat16)
        quantized.save_pretrained(HERE / name)
        weights = dequantized(quantized)
        assert weights
        digests[name] = {k: hashlib.sha256(w.numpy().tobytes()).hexdigest() for k, w in sorted(weights.items())}
        if float_base != "llama":
            continue
        model = AutoModelForCausalLM.from_pretrained(HERE / "llama", dtype=torch.float32)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and not any("proj" in k for k in missing)
        with torch.no_grad():
            out = PeftModel.from_pretrained(model, HERE / "adapter").eval()(IDS).logits[0]
            over = PeftModel.from_pretrained(quantized, HERE / "adapter").eval()(IDS).logits[0].float()
        # What PEFT runs over the quantized base itself is the same up to its half precision.
        off = ((over - out).abs().max() / out.std()).item()
        print(f"{name}: {len(weights)} weights; quantized run differs by {off:.4f} std")
        assert off < 0.1
        logits[name] = out.contiguous()
    logits["ids"] = IDS[0].to(torch.int32)
    save_file(logits, HERE / "expected.safetensors")
    (HERE / "expected.json").write_text(json.dumps(digests, indent=1) + "\n")
    for file in HERE.rglob("*"):
        if file.name in ("README.md", "generation_config.json"):
            file.unlink()


if __name__ == "__main__":
    main()
