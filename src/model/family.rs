//! The families of checkpoints, as a table: which switches of the shared layout each sets, what its files call things,
//! and what is known of its checkpoints beyond their config.json. A new family is a new row of [`FAMILIES`].

/// A family of checkpoints.
#[derive(Debug)]
pub struct Family {
    /// Its name, as its authors write it.
    pub name: &'static str,
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The entry of `architectures` in config.json by which it is known whatever its `model_type` says.
    pub(crate) class: Option<&'static str>,
    /// Whether the projections to queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// Whether each head of queries and keys passes through an RMSNorm before RoPE.
    pub(super) qk_norm: bool,
    /// Features per head where config.json doesn't say; `None` for width / heads.
    pub(super) head_dim: Option<usize>,
    /// Whether its code divides the width by the heads, whatever config.json says of features per head.
    pub(super) derives_head_dim: bool,
    /// Whether the logits that predict position i sit at position i-1.
    pub(super) logits_shifted: bool,
    /// The mask token's id, where its authors write it in none of a checkpoint's files.
    pub(super) mask_token_id: Option<u32>,
    /// Tokens per block if config.json doesn't name them, for a family that is trained by block diffusion.
    pub(super) block_length: Option<usize>,
    /// What its tensors are called.
    pub(crate) names: &'static Names,
    /// What config.json calls its sizes and constants.
    pub(crate) keys: &'static Keys,
}

impl Family {
    /// What this family calls a linear layer that another family calls `name`.
    pub(super) fn own_name(&self, name: &str) -> Option<&'static str> {
        let last = |path: &'static str| path.rsplit('.').next().unwrap_or(path);
        let of = |names: &'static Names| {
            let Names { attn_out, gate_up: [gate, up], down, head, .. } = *names;
            [attn_out, gate, up, down, head].map(last)
        };
        FAMILIES.iter().find_map(|other| {
            let place = of(other.names).into_iter().position(|part| part == name)?;
            Some(of(self.names)[place]).filter(|own| *own != name)
        })
    }
}

/// Every family that Weft loads.
///
/// # Source
/// The modelling code beside LLaDA-8B (arXiv 2502.09992), Dream-7B (arXiv 2508.15487) and iLLaDA-8B; dLLM's A2D models;
/// JetLM's SDAR (arXiv 2510.06303) and NVIDIA's Fast-dLLM v2 (arXiv 2509.26328), whose blocks have 4 and 32 tokens in most
/// checkpoints; transformers' Qwen2, Qwen3 and Llama. The last three are read as checkpoints of autoregressive models that were
/// trained on to see both sides: as in Open-dLLM, the logits stay shifted.
pub static FAMILIES: [Family; 11] = [
    Family {
        name: "LLaDA",
        model_type: "llada",
        keys: &LLADA_KEYS,
        names: &LLADA_NAMES,
        derives_head_dim: true,
        ..LLAMA
    },
    Family { name: "Dream", model_type: "Dream", derives_head_dim: true, logits_shifted: true, ..QWEN2 },
    Family { name: "iLLaDA", model_type: "illada", class: Some("ILLaDAForCausalLM"), mask_token_id: Some(5), ..LLAMA },
    Family { name: "A2D Qwen2", model_type: "a2d-qwen2", class: Some("A2DQwen2LMHeadModel"), ..QWEN2 },
    Family { name: "A2D Qwen3", model_type: "a2d-qwen3", class: Some("A2DQwen3LMHeadModel"), ..QWEN3 },
    Family { name: "A2D Llama", model_type: "a2d-llama", class: Some("A2DLlamaLMHeadModel"), ..LLAMA },
    Family {
        name: "SDAR",
        model_type: "sdar",
        class: Some("SDARForCausalLM"),
        mask_token_id: Some(151_669),
        block_length: Some(4),
        ..QWEN3
    },
    Family {
        name: "Fast-dLLM v2",
        model_type: "Fast_dLLM_Qwen",
        class: Some("Fast_dLLM_QwenForCausalLM"),
        logits_shifted: true,
        mask_token_id: Some(151_665),
        block_length: Some(32),
        ..QWEN2
    },
    Family { logits_shifted: true, ..QWEN2 },
    Family { logits_shifted: true, ..QWEN3 },
    Family { logits_shifted: true, ..LLAMA },
];

/// Llama's layout: none of the switches.
const LLAMA: Family = Family {
    name: "Llama",
    model_type: "llama",
    class: None,
    qkv_bias: false,
    qk_norm: false,
    head_dim: None,
    derives_head_dim: false,
    logits_shifted: false,
    mask_token_id: None,
    block_length: None,
    names: &QWEN_NAMES,
    keys: &QWEN_KEYS,
};

/// Qwen2's layout: biases on queries, keys and values.
const QWEN2: Family = Family { name: "Qwen2", model_type: "qwen2", qkv_bias: true, ..LLAMA };

/// Qwen3's layout: norms of queries and keys, and heads of 128 features unless config.json says otherwise.
const QWEN3: Family = Family { name: "Qwen3", model_type: "qwen3", qk_norm: true, head_dim: Some(128), ..LLAMA };

/// A family's module names; those within a block follow the name of the blocks and a number.
#[derive(Debug)]
pub(crate) struct Names {
    pub embedding: &'static str,
    pub blocks: &'static str,
    pub attn_norm: &'static str,
    pub qkv: [&'static str; 3],
    pub qk_norm: [&'static str; 2],
    pub attn_out: &'static str,
    pub ff_norm: &'static str,
    pub gate_up: [&'static str; 2],
    pub down: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    /// Whether the network has a module for the head even where its weight is the embedding's.
    pub has_tied_module: bool,
}

const LLADA_NAMES: Names = Names {
    embedding: "model.transformer.wte",
    blocks: "model.transformer.blocks",
    attn_norm: "attn_norm",
    qkv: ["q_proj", "k_proj", "v_proj"],
    qk_norm: ["q_norm", "k_norm"],
    attn_out: "attn_out",
    ff_norm: "ff_norm",
    gate_up: ["ff_proj", "up_proj"],
    down: "ff_out",
    final_norm: "model.transformer.ln_f",
    head: "model.transformer.ff_out",
    has_tied_module: false,
};

const QWEN_NAMES: Names = Names {
    embedding: "model.embed_tokens",
    blocks: "model.layers",
    attn_norm: "input_layernorm",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    attn_out: "self_attn.o_proj",
    ff_norm: "post_attention_layernorm",
    gate_up: ["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    final_norm: "model.norm",
    head: "lm_head",
    has_tied_module: true,
};

/// What a family's config.json calls its sizes and constants.
#[derive(Debug)]
pub(crate) struct Keys {
    pub layers: &'static str,
    pub width: &'static str,
    pub heads: &'static str,
    pub kv_heads: &'static str,
    pub mlp_hidden_size: &'static str,
    /// The factor of the width that is the MLP's size where [`Keys::mlp_hidden_size`] is absent, and its default.
    pub mlp_ratio: Option<(&'static str, usize)>,
    /// The rows of the embedding, where there may be more than tokens.
    pub rows: Option<&'static str>,
    pub tied: &'static str,
    /// RMSNorm's epsilon where config.json doesn't say.
    pub rms_norm_eps: f32,
    /// Fields for which Weft supports one value only; an absent field has that value.
    pub required: &'static [(&'static str, &'static str)],
    /// Dropout settings of the base, which Weft supports at 0 only.
    pub dropouts: &'static [&'static str],
}

pub(super) const LLADA_KEYS: Keys = Keys {
    layers: "n_layers",
    width: "d_model",
    heads: "n_heads",
    kv_heads: "n_kv_heads",
    mlp_hidden_size: "mlp_hidden_size",
    mlp_ratio: Some(("mlp_ratio", 4)),
    rows: Some("embedding_size"),
    tied: "weight_tying",
    rms_norm_eps: 1e-5,
    required: &[
        ("include_bias", "false"),
        ("include_qkv_bias", "false"),
        ("bias_for_layer_norm", "false"),
        ("alibi", "false"),
        ("input_emb_norm", "false"),
        ("attention_layer_norm", "false"),
        ("scale_logits", "false"),
        ("multi_query_attention", "false"),
        ("rope", "true"),
        ("rope_full_precision", "true"),
        ("layer_norm_with_affine", "true"),
        ("activation_type", "\"silu\""),
        ("block_type", "\"llama\""),
        ("block_group_size", "1"),
        ("layer_norm_type", "\"rms\""),
    ],
    dropouts: &["attention_dropout", "residual_dropout", "embedding_dropout"],
};

const QWEN_KEYS: Keys = Keys {
    layers: "num_hidden_layers",
    width: "hidden_size",
    heads: "num_attention_heads",
    kv_heads: "num_key_value_heads",
    mlp_hidden_size: "intermediate_size",
    mlp_ratio: None,
    rows: None,
    tied: "tie_word_embeddings",
    rms_norm_eps: 1e-6,
    required: &[
        ("hidden_act", "\"silu\""),
        ("use_sliding_window", "false"),
        ("use_mrope", "false"),
        ("attention_bias", "false"),
        ("mlp_bias", "false"),
        // iLLaDA's code replaces its RMSNorm by a LayerNorm where this is set.
        ("layer_norm_eps", "null"),
    ],
    dropouts: &["attention_dropout", "resid_dropout", "embd_dropout"],
};
