#!/usr/bin/env python3
"""Makes the committed cases of architectures that the conformance kit has no case for, with the kit's own generator.

    python make_cases.py KIT [NAME ...]      KIT: the kit's folder, with `kitlib`

Needs what the kit's README names (torch, transformers, peft …). The cases land in `fixtures/` beside this file.
"""
import os
import sys

KIT, WANT = os.path.abspath(sys.argv[1]), set(sys.argv[2:])
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, KIT)

from kitlib import engine, models                                  # noqa: E402
from kitlib.engine import Adapter, Case                            # noqa: E402

_N = dict(n_embd=64, n_layer=2, n_head=4, n_positions=96)
models.ARCH.update({
    "gptj": dict(_N, rotary_dim=8, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "gpt_neo": dict(hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=96, window_size=8,
                    attention_types=[[["global", "local"], 1]], resid_dropout=0.0, embed_dropout=0.0,
                    attention_dropout=0.0),
    "mpt": dict(d_model=64, n_heads=6, n_layers=2, max_seq_len=96),
    "cohere2": dict(models._GQA, logit_scale=0.25, sliding_window=8, num_hidden_layers=3,
                    layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "glm": dict(models._GQA, head_dim=16),
    "glm4": dict(models._GQA, head_dim=16),
    "olmoe": dict(models._GQA, num_experts=4, num_experts_per_tok=2, intermediate_size=64),
})
models.ARCH["mpt"].update(d_model=96, n_heads=6)

ATT = ["q_proj", "k_proj", "v_proj", "o_proj"]
QV = ["q_proj", "v_proj"]


def lora(targets, **kw):
    return [Adapter(dict(r=4, lora_alpha=8, target_modules=targets, **kw))]


def cases():
    c = []

    def add(name, arch, **kw):
        kw.setdefault("dtype", "bf16")
        kw.setdefault("lengths", (7, 20))
        c.append(Case(name=name, arch=arch, seed=700 + len(c), **kw))

    lm = dict(out_gain=3.0)
    add("phi_parallel", "phi", tok="gpt2", adapters=lora(ATT[:3] + ["dense", "fc1", "fc2"]), **lm)
    add("stablelm_partial", "stablelm", tok="neox", adapters=lora(ATT + ["up_proj"]), **lm)
    add("olmo_bare_norms", "olmo", tok="neox", adapters=lora(QV), **lm)
    add("cohere_parallel", "cohere", tok="gpt2", adapters=lora(ATT + ["down_proj"]), **lm)
    add("cohere2_windows", "cohere2", tok="gpt2", adapters=lora(QV), legacy=False, **lm)
    add("gptj_interleaved", "gptj", tok="gpt2", adapters=lora(QV + ["fc_in"]), **lm)
    add("gpt_neo_local", "gpt_neo", tok="gpt2", adapters=lora(QV + ["c_fc"]), **lm)
    add("mpt_alibi", "mpt", tok="neox", adapters=lora(["Wqkv", "down_proj"]), **lm)
    add("glm_interleaved", "glm", tok="gpt2", adapters=lora(QV + ["gate_up_proj"]), **lm)
    add("glm4_sandwich", "glm4", tok="gpt2", adapters=lora(QV), **lm)
    add("gemma_mqa", "gemma", tok="gemma", vocab=640, emb_std=0.08, out_gain=4.0, greedy=False,
        adapters=lora(QV))
    add("qwen3_moe_qk_norm", "qwen3_moe", tok="qwen", adapters=lora(QV), legacy=False)
    add("olmoe_qk_norm", "olmoe", tok="neox", adapters=lora(QV), legacy=False)
    add("mbart_prenorm", "mbart", task="seq2seq_lm", tok="bart", out_gain=3.0, greedy=False,
        adapters=lora(QV + ["fc1"]))
    add("xlm_roberta_seqcls", "xlm-roberta", task="seq_cls", tok="roberta", labels=["a", "b", "c"],
        lengths=(3, 5, 7, 11, 20, 33, 50, 65),                     # eight texts, so that luck averages out
        adapters=lora(["query", "value"]))
    add("mpnet_embed", "mpnet", task="feature_extraction", tok="wordpiece", adapters=lora(["q", "v"]), pooling="mean")
    add("deberta_v2_seqcls", "deberta-v2", task="seq_cls", tok="roberta", labels=["a", "b", "c"],
        adapters=lora(["query_proj", "value_proj", "key_proj"]))
    add("deberta_v2_qa", "deberta-v2", task="question_answering", tok="roberta", lengths=(3,),
        pairs=[("Who keeps a small notebook?", "The harbour master keeps a small notebook in the pocket of her coat.")],
        cfg=dict(share_att_key=False), adapters=lora(["query_proj", "value_proj"]))
    add("llama_tokencls", "llama", task="token_cls", tok="llama3", labels=["O", "B-X", "I-X"], adapters=lora(QV))
    add("qwen2_qa", "qwen2", task="question_answering", tok="qwen", lengths=(3,),
        pairs=[("Who keeps a small notebook?", "The harbour master keeps a small notebook in the pocket of her coat.")],
        adapters=lora(QV))
    add("bert_multilabel", "bert", task="seq_cls", tok="wordpiece", labels=["p", "q", "r"],
        problem_type="multi_label_classification", adapters=lora(["query"]))
    add("bert_regression", "bert", task="seq_cls", tok="wordpiece", labels=["score"], problem_type="regression", sim=False,
        adapters=lora(["query"]))                                  # two numbers say nothing about a quantization
    return c


engine.setup()
failed = 0
for case in cases():
    if WANT and case.name not in WANT:
        continue
    try:
        engine.build(case, os.path.join(HERE, "fixtures"))
    except Exception as e:                                         # the others go on
        failed += 1
        print(f"FAILED {case.name}: {type(e).__name__}: {str(e)[:500]}", flush=True)
sys.exit(1 if failed else 0)
