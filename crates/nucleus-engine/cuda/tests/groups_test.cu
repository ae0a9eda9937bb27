// Products in groups of warps, each way of them chosen by hand: what a product of its size would take, the tests of products see; what else a kernel may do, a tool
// that slows a program down a thousandfold sees here.
//
//     groups_test [TYPE [BLOCKS [GROUPS [ROWS]]]]      blocks of a cluster: 1, 2, 4; groups of a block: 2, 4; rows of a tile: 16, 32, 64; 0 or none: all
#include <cstring>

#include "../kernels/linear/pack.cuh"
#include "../kernels/linear/warpgroup.cuh"
#include "blocks.cuh"
#include "device.cuh"

namespace {

using namespace nucleus::linear;
using test::Buffer;
using test::Matrix;

// Two tiles of two groups, or one of four, the last of either not whole; four sections, of which a block has one to four.
constexpr uint32_t OUTPUTS = 8 * PANEL + 40, INPUTS = 4 * SLICE;

struct Chosen {
  uint32_t blocks = 0, groups = 0, rows = 0;

  static bool is(uint32_t wanted, uint32_t value) { return !wanted || wanted == value; }
};

uint32_t ways = 0, failures = 0;

// A matrix of a type, and activations for it.
template <class W>
struct Case {
  const char *name;
  const Matrix matrix;
  const Buffer<uint8_t> held;

  explicit Case(const test::Type &type) : name(type.name), matrix(type, OUTPUTS, INPUTS, 5), held(div_up(OUTPUTS, PANEL) * panel_bytes<W>(INPUTS)) {
    CHECK(launch_pack<W>(Buffer<uint8_t>(matrix.bytes).get(), OUTPUTS, INPUTS, held.get(), nullptr));
    CHECK(cudaDeviceSynchronize());
  }

  template <uint32_t GROUPS, uint32_t ROWS>
  void check(const Chosen &chosen) const {
    if (!Chosen::is(chosen.groups, GROUPS) || !Chosen::is(chosen.rows, ROWS)) return;
    for (uint32_t blocks : {1u, 2u, 4u})
      if (Chosen::is(chosen.blocks, blocks)) check<GROUPS, ROWS>(blocks);
  }
  template <uint32_t GROUPS, uint32_t ROWS>
  void check(uint32_t blocks) const {
    using Way = GroupWay<W, GROUPS, ROWS>;
    constexpr uint32_t HELD_ROWS = ROWS - 3;
    std::vector<float> x(size_t{HELD_ROWS} * INPUTS);
    for (size_t i = 0; i < x.size(); ++i) x[i] = test::uniform(i, ROWS);
    Buffer<float> input(x), output(size_t{HELD_ROWS} * OUTPUTS);
    output.poison();
    const SplitRows shape(INPUTS, ROWS);
    Buffer<uint8_t> workspace(shape.tile_bytes());
    workspace.poison();
    Call call{};
    call.rows = HELD_ROWS;
    call.inputs = INPUTS;
    call.products[0] = {{held.get(), matrix.type.number, OUTPUTS, INPUTS}, nullptr, output.get(), OUTPUTS};
    for (uint32_t i = 1; i <= MAX_PRODUCTS; ++i) call.first_panels[i] = div_up(OUTPUTS, PANEL);
    Device device;
    CHECK(Device::current(device));
    CHECK(allow_shared_bytes(Way::function(), device));
    const SplitRows split(INPUTS, ROWS, workspace.get());
    CHECK(launch_split<typename W::Number>(input.get(), HELD_ROWS, split, nullptr));
    CHECK((TileChoice{Way::function(), Way::THREADS, Way::BYTES, div_up(call.panels(), Way::PANELS), blocks}.launch(call, split, nullptr)));
    const std::vector<float> results = output.host();
    double worst = 0;
    for (uint32_t row = 0; row < HELD_ROWS; ++row)
      for (uint32_t o = 0; o < OUTPUTS; ++o) {
        double sum = 0, magnitudes = 1e-30;
        for (uint32_t i = 0; i < INPUTS; ++i) {
          const double product = double{matrix.weights[size_t{o} * INPUTS + i]} * x[size_t{row} * INPUTS + i];
          sum += product, magnitudes += std::fabs(product);
        }
        const double error = std::fabs(results[size_t{row} * OUTPUTS + o] - sum) / magnitudes;
        worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
      }
    ways += 1;
    const double bound = W::TYPE == NUCLEUS_F32 ? std::exp2(-16) : std::exp2(-19);
    if (worst <= bound) return;
    failures += 1;
    std::printf("FAILED: %s, %u groups, %u rows, clusters of %u: error %g of the magnitudes\n", name, GROUPS, ROWS, blocks, worst);
  }
};

template <class W>
void check_type(const char *only, const Chosen &chosen) {
  for (const test::Type &type : test::TYPES) {
    if (type.number != W::TYPE || (only && std::strcmp(only, type.name))) continue;
    const Case<W> c(type);
    c.template check<2, 16>(chosen);
    c.template check<2, SMALL_TILE>(chosen);
    c.template check<2, LARGE_TILE>(chosen);
    c.template check<4, 16>(chosen);
    c.template check<4, SMALL_TILE>(chosen);
    if constexpr (W::Fragment::PARTS == 1) c.template check<4, LARGE_TILE>(chosen);
  }
}

}  // namespace

// Weights of two parts, with a scale, with a minimum, and with two scales a step.
int main(int count, char **arguments) {
  const char *const type = count > 1 ? arguments[1] : nullptr;
  const auto number = [&](int at) { return count > at ? static_cast<uint32_t>(std::atoi(arguments[at])) : 0; };
  const Chosen chosen{number(2), number(3), number(4)};
  check_type<F32>(type, chosen);
  check_type<Q8_0>(type, chosen);
  check_type<Q4_K>(type, chosen);
  check_type<Q6_K>(type, chosen);
  std::printf("%u ways, %u failed\n", ways, failures);
  return failures != 0 || !ways;
}
