//! The architectures, by what sets each apart from Llama: one decoder runs them all.

/// How the feed-forward block bends its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x·Φ(x)`, with Φ approximated by a tanh.
    GeluTanh,
}

/// Which values of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// `2i` and `2i + 1`.
    Neighbours,
    /// `i` and `i + n/2`, of `n` rotated values.
    Halves,
}

/// Which layers attend through a sliding window, where a model has one and does not list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sliding {
    /// None: the architecture knows no window.
    Never,
    /// All.
    Every,
    /// All but each n-th.
    AllBut(usize),
}

/// An architecture.
#[derive(Debug, PartialEq)]
pub(super) struct Architecture {
    /// `general.architecture` of GGUF files.
    pub(super) name: &'static str,
    /// `model_type` of `config.json`, in directories of safetensors files.
    pub(super) model_types: &'static [&'static str],
    /// Of the gate.
    pub(super) activation: Activation,
    /// Pairs of the rotary embedding in GGUF files; in safetensors files they are halves.
    pub(super) gguf_pairs: Pairs,
    /// Query, key and value are one matrix, and so are gate and up.
    pub(super) fused: bool,
    /// Queries and keys are normalised, head by head, before they are rotated.
    pub(super) head_norms: bool,
    /// What attention and the feed-forward block give is normalised before it is added.
    pub(super) post_norms: bool,
    /// Embeddings are multiplied by the root of their width.
    pub(super) scaled_embedding: bool,
    /// What is added to the weights of norms in safetensors files. GGUF files have the sum.
    pub(super) norm_offset: f32,
    /// Its windows.
    pub(super) sliding: Sliding,
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_types: &["llama", "mistral"],
    activation: Activation::Silu,
    gguf_pairs: Pairs::Neighbours,
    fused: false,
    head_norms: false,
    post_norms: false,
    scaled_embedding: false,
    norm_offset: 0.0,
    sliding: Sliding::Every,
};

const GEMMA: Architecture = Architecture {
    name: "gemma",
    model_types: &["gemma"],
    activation: Activation::GeluTanh,
    gguf_pairs: Pairs::Halves,
    scaled_embedding: true,
    norm_offset: 1.0,
    sliding: Sliding::Never,
    ..LLAMA
};

/// Every architecture that can run.
pub(super) static ARCHITECTURES: [Architecture; 7] = [
    LLAMA,
    Architecture {
        name: "qwen2",
        model_types: &["qwen2"],
        gguf_pairs: Pairs::Halves,
        ..LLAMA
    },
    Architecture {
        name: "qwen3",
        model_types: &["qwen3"],
        gguf_pairs: Pairs::Halves,
        head_norms: true,
        ..LLAMA
    },
    Architecture {
        name: "phi3",
        model_types: &["phi3"],
        gguf_pairs: Pairs::Halves,
        fused: true,
        ..LLAMA
    },
    GEMMA,
    Architecture {
        name: "gemma2",
        model_types: &["gemma2"],
        post_norms: true,
        sliding: Sliding::AllBut(2),
        ..GEMMA
    },
    Architecture {
        name: "gemma3",
        model_types: &["gemma3_text"],
        head_norms: true,
        post_norms: true,
        sliding: Sliding::AllBut(6),
        ..GEMMA
    },
];

impl Architecture {
    /// The architecture that GGUF files call so.
    pub(super) fn by_name(name: &str) -> Option<&'static Self> {
        ARCHITECTURES
            .iter()
            .find(|architecture| architecture.name == name)
    }

    /// The architecture that `config.json` calls so.
    pub(super) fn by_model_type(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES
            .iter()
            .find(|architecture| architecture.model_types.contains(&model_type))
    }
}

impl Sliding {
    /// For each layer, whether it slides.
    pub(super) fn layers(self, layers: usize) -> Vec<bool> {
        let slides = |layer: usize| match self {
            Self::Never => false,
            Self::Every => true,
            Self::AllBut(each) => !(layer + 1).is_multiple_of(each),
        };
        (0..layers).map(slides).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_means_one_architecture() {
        for architecture in &ARCHITECTURES {
            assert_eq!(Architecture::by_name(architecture.name), Some(architecture));
            for model_type in architecture.model_types {
                assert_eq!(Architecture::by_model_type(model_type), Some(architecture));
            }
        }
        assert_eq!(Architecture::by_name("mamba"), None);
    }

    #[test]
    fn windows_alternate() {
        assert_eq!(Sliding::AllBut(2).layers(4), [true, false, true, false]);
        let gemma3 = Sliding::AllBut(6).layers(12);
        let global: Vec<usize> = (0..12).filter(|&layer| !gemma3[layer]).collect();
        assert_eq!(global, [5, 11]);
    }
}
