// The layouts of weights, on the host: what is packed from a file's blocks reads as the weights that the blocks mean, both ways of reading.
#include <cstdio>

#include "../kernels/linear/weights.cuh"
#include "../kernels/linear/weights_k.cuh"
#include "blocks.cuh"

using namespace nucleus::linear;

namespace {

int failures = 0;

// A register's number, of either kind.
template <class Number>
float number(uint32_t pair, uint32_t which) {
  uint32_t bits = pair >> 16 * which & 0xffff;
  return std::is_same_v<Number, Half> ? half_value(bits) : bits_value(bits << 16);
}

template <class W>
std::vector<uint8_t> pack(const test::Matrix &matrix) {
  uint32_t panels = div_up(matrix.outputs, PANEL), chunks = chunks_of<W>(matrix.inputs);
  std::vector<uint8_t> held(panels * panel_bytes<W>(matrix.inputs), 0xaa);
  size_t row_bytes = size_t{matrix.inputs} / W::BLOCK * W::BLOCK_BYTES;
  for (uint32_t panel = 0; panel < panels; ++panel)
    for (uint32_t chunk = 0; chunk < chunks; ++chunk)
      for (uint32_t step = 0; step < W::STEPS; ++step)
        for (uint32_t lane = 0; lane < 32; ++lane) {
          Packing p{{}, matrix.inputs, chunk * W::STEPS * STEP, step, lane};
          for (uint32_t h = 0; h < 2; ++h) {
            uint32_t output = panel * PANEL + lane / 4 + 8 * h;
            p.rows[h] = output < matrix.outputs ? &matrix.bytes[output * row_bytes] : nullptr;
          }
          W::pack(p, &held[(size_t{panel} * chunks + chunk) * W::CHUNK_BYTES]);
        }
  return held;
}

template <class W>
void check(const test::Type &type, uint32_t outputs, uint32_t inputs) {
  using F = typename W::Fragment;
  test::Matrix matrix(type, outputs, inputs, outputs + inputs);
  std::vector<uint8_t> held = pack<W>(matrix);
  alignas(16) static uint8_t aligned[1 << 16];
  uint32_t wrong = 0;
  for (uint32_t output = 0; output < div_up(outputs, PANEL) * PANEL; ++output) {
    for (uint32_t input = 0; input < chunks_of<W>(inputs) * W::STEPS * STEP; ++input) {
      bool inside = output < outputs && input < inputs;
      float expected = inside ? matrix.weights[size_t{output} * inputs + input] : 0.0f;
      uint32_t chunk = input / (W::STEPS * STEP), within = input % (W::STEPS * STEP), step = within / STEP, h = output / 8 % 2;
      std::memcpy(aligned, &held[output / PANEL * panel_bytes<W>(inputs) + size_t{chunk} * W::CHUNK_BYTES], W::CHUNK_BYTES);
      Place p = place_of(within);
      F fragment = W::load(aligned, step, output % 8 * 4 + p.t);
      float loaded = 0;
      for (int part = 0; part < F::PARTS; ++part) loaded += number<typename W::Number>(fragment.a[p.m][part][p.i / 2 * 2 + h], p.i % 2);
      if (F::SCALES) loaded *= fragment.scale[F::SCALES == 2 ? p.m : 0][h];
      if (F::MINIMUM) loaded -= fragment.minimum[h];
      bool exact = W::weight(aligned, output % PANEL, within) == expected;
      bool near = F::PARTS == 1 ? loaded == expected : std::fabs(loaded - expected) <= std::ldexp(std::fabs(expected), -16);
      wrong += !exact || !near;
      if ((!exact || !near) && wrong < 4)
        std::printf("%s output %u input %u: %g, as a fragment %g, not %g\n", type.name, output, input, W::weight(aligned, output % PANEL, within), loaded, expected);
    }
  }
  std::printf("%-5s %4u x %4u: %u wrong\n", type.name, outputs, inputs, wrong);
  failures += wrong != 0;
}

void check_sections() {
  for (uint32_t inputs = 1; inputs < 40000; ++inputs) {
    Sections s = sections_of(inputs);
    bool ok = s.count >= 1 && s.count <= MAX_SECTIONS && s.inputs % SLICE == 0 && s.count * s.inputs >= inputs && (s.count - 1) * s.inputs < inputs;
    if (!ok) std::printf("sections of %u: %u of %u\n", inputs, s.count, s.inputs);
    failures += !ok;
  }
  for (uint32_t inputs : {64u, 288u, 896u, 1536u, 2048u, 3072u, 3584u, 4096u, 5120u, 8192u, 8960u, 11008u, 14336u, 18944u, 28672u})
    std::printf("%u: %u sections of %u\n", inputs, sections_of(inputs).count, sections_of(inputs).inputs);
}

}  // namespace

int main() {
  check_sections();
  for (uint32_t outputs : {1u, 16u, 37u}) {
    for (uint32_t inputs : {1u, 33u, 130u, 257u}) {
      check<F32>(test::TYPES[0], outputs, inputs);
      check<F16>(test::TYPES[1], outputs, inputs);
      check<BF16>(test::TYPES[2], outputs, inputs);
    }
    for (uint32_t inputs : {32u, 160u, 512u}) {
      check<Q8_0>(test::TYPES[3], outputs, inputs);
      check<Q4_0>(test::TYPES[4], outputs, inputs);
    }
    for (uint32_t inputs : {256u, 768u}) {
      check<Q4_K>(test::TYPES[5], outputs, inputs);
      check<Q6_K>(test::TYPES[6], outputs, inputs);
    }
  }
  return failures != 0;
}
