//! The types of tensors: their names, block layouts, and which of them can be computed with.

use std::fmt;

use candle_core::quantized::GgmlDType;

/// A ggml tensor type, by its number in the file; any number, known or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorType(u32);

/// How a type packs elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLayout {
    /// Elements in a block; 1 for types that are not quantised.
    pub elements: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

struct Known {
    number: u32,
    name: &'static str,
    /// `None` for types that ggml has removed.
    layout: Option<BlockLayout>,
    candle: Option<GgmlDType>,
}

impl TensorType {
    /// The type of that number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number in the file.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The type's layout; `None` when the type is not known, or no longer is part of ggml.
    pub fn layout(self) -> Option<BlockLayout> {
        self.known()?.layout
    }

    /// The tensor library's type; `None` when it cannot compute with this one.
    pub fn candle_type(self) -> Option<GgmlDType> {
        self.known()?.candle
    }

    /// Whether tensors of this type can be loaded.
    pub fn is_supported(self) -> bool {
        self.candle_type().is_some()
    }

    /// Every type that tensors can be loaded of.
    pub fn supported() -> impl Iterator<Item = Self> {
        let supported = KNOWN.iter().filter(|known| known.candle.is_some());
        supported.map(|known| Self(known.number))
    }

    fn known(self) -> Option<&'static Known> {
        KNOWN.iter().find(|known| known.number == self.0)
    }
}

/// The type's name, such as `Q8_0`; `unknown-99` when it has none.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(known) => f.pad(known.name),
            None => f.pad(&format!("unknown-{}", self.0)),
        }
    }
}

impl fmt::Debug for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

const fn computes(
    number: u32,
    name: &'static str,
    elements: u64,
    bytes: u64,
    candle: GgmlDType,
) -> Known {
    Known {
        number,
        name,
        layout: Some(BlockLayout { elements, bytes }),
        candle: Some(candle),
    }
}

const fn sized(number: u32, name: &'static str, elements: u64, bytes: u64) -> Known {
    Known {
        number,
        name,
        layout: Some(BlockLayout { elements, bytes }),
        candle: None,
    }
}

const fn removed(number: u32, name: &'static str) -> Known {
    Known {
        number,
        name,
        layout: None,
        candle: None,
    }
}

/// Numbers and sizes as in ggml.h and ggml-common.h of ggml.
const KNOWN: &[Known] = &[
    computes(0, "F32", 1, 4, GgmlDType::F32),
    computes(1, "F16", 1, 2, GgmlDType::F16),
    computes(2, "Q4_0", 32, 18, GgmlDType::Q4_0),
    computes(3, "Q4_1", 32, 20, GgmlDType::Q4_1),
    removed(4, "Q4_2"),
    removed(5, "Q4_3"),
    computes(6, "Q5_0", 32, 22, GgmlDType::Q5_0),
    computes(7, "Q5_1", 32, 24, GgmlDType::Q5_1),
    computes(8, "Q8_0", 32, 34, GgmlDType::Q8_0),
    sized(9, "Q8_1", 32, 36),
    computes(10, "Q2_K", 256, 84, GgmlDType::Q2K),
    computes(11, "Q3_K", 256, 110, GgmlDType::Q3K),
    computes(12, "Q4_K", 256, 144, GgmlDType::Q4K),
    computes(13, "Q5_K", 256, 176, GgmlDType::Q5K),
    computes(14, "Q6_K", 256, 210, GgmlDType::Q6K),
    sized(15, "Q8_K", 256, 292),
    sized(16, "IQ2_XXS", 256, 66),
    sized(17, "IQ2_XS", 256, 74),
    sized(18, "IQ3_XXS", 256, 98),
    sized(19, "IQ1_S", 256, 50),
    sized(20, "IQ4_NL", 32, 18),
    sized(21, "IQ3_S", 256, 110),
    sized(22, "IQ2_S", 256, 82),
    sized(23, "IQ4_XS", 256, 136),
    sized(24, "I8", 1, 1),
    sized(25, "I16", 1, 2),
    sized(26, "I32", 1, 4),
    sized(27, "I64", 1, 8),
    sized(28, "F64", 1, 8),
    sized(29, "IQ1_M", 256, 56),
    computes(30, "BF16", 1, 2, GgmlDType::BF16),
    removed(31, "Q4_0_4_4"),
    removed(32, "Q4_0_4_8"),
    removed(33, "Q4_0_8_8"),
    sized(34, "TQ1_0", 256, 54),
    sized(35, "TQ2_0", 256, 66),
    removed(36, "IQ4_NL_4_4"),
    removed(37, "IQ4_NL_4_8"),
    removed(38, "IQ4_NL_8_8"),
    sized(39, "MXFP4", 32, 17),
    sized(40, "NVFP4", 64, 36),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_tensor_library() {
        for known in KNOWN {
            let Some(dtype) = known.candle else { continue };
            let expected = BlockLayout {
                elements: dtype.block_size() as u64,
                bytes: dtype.type_size() as u64,
            };
            assert_eq!(known.layout, Some(expected), "{}", known.name);
        }
    }

    #[test]
    fn numbers_are_in_order_and_unique() {
        assert!(KNOWN.windows(2).all(|pair| pair[0].number < pair[1].number));
    }

    #[test]
    fn types_without_a_name_show_their_number() {
        assert_eq!(TensorType::new(8).to_string(), "Q8_0");
        assert_eq!(TensorType::new(4711).to_string(), "unknown-4711");
        assert_eq!(TensorType::new(4711).layout(), None);
    }

    #[test]
    fn known_types_may_be_unsupported() {
        assert!(TensorType::new(8).is_supported());
        assert!(!TensorType::new(39).is_supported());
        assert_eq!(TensorType::new(31).layout(), None);
    }
}
