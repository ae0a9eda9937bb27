// Norms, activations, drawn tokens, rotations and the way into the cache, against float64 on the host; then that a row does not depend on others; then times.
// Usage: pointwise_test [quick]
#include <cuda_fp16.h>

#include <numeric>

#include "../kernels/cache_layout.cuh"
#include "testing.cuh"

using nucleus::place_in_block;
using nucleus::stored_width;

namespace {

constexpr float EPS = 1e-6f;

Report report;
Random random_numbers{7};

std::vector<double> normalised(const std::vector<double> &x, const std::vector<float> &weight, float eps) {
  const size_t width = weight.size();
  std::vector<double> y(x.size());
  for (size_t start = 0; start < x.size(); start += width) {
    double squares = 0.0;
    for (size_t i = 0; i < width; ++i) squares += x[start + i] * x[start + i];
    const double scale = 1.0 / std::sqrt(squares / double(width) + double(eps));
    for (size_t i = 0; i < width; ++i) y[start + i] = x[start + i] * scale * double(weight[i]);
  }
  return y;
}

std::vector<double> widened(const std::vector<float> &x) { return {x.begin(), x.end()}; }

std::vector<double> sum_of(const std::vector<double> &a, const std::vector<double> &b) {
  std::vector<double> sum(a);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += b[i];
  return sum;
}

template <class T>
std::vector<T> part(const std::vector<T> &x, size_t start, size_t count) {
  return {x.begin() + start, x.begin() + start + count};
}

void test_norms(uint32_t width) {
  const uint32_t rows = 5;
  const std::string name = "width " + std::to_string(width);
  std::vector<float> x = random_numbers.normals(rows * width, 3.0f), y = random_numbers.normals(rows * width), weight = random_numbers.normals(width);
  const std::vector<float> post = random_numbers.normals(width);
  for (uint32_t i = 0; i < width; ++i) y[3 * width + i] = x[3 * width + i] = 0.0f;
  x[4 * width + width / 2] = NAN;
  DeviceArray<float> device_x(x), device_y(y), device_weight(weight), device_post(post), output(rows * width), hidden(x);
  CHECK(nucleus_rms_norm(device_x.data, device_weight.data, EPS, rows, width, output.data, nullptr));
  report.expect(worst_error(output.host(), normalised(widened(x), weight, EPS), 1e-3) < 2e-6, "rms_norm " + name);
  std::vector<float> whole = output.host();
  CHECK(nucleus_rms_norm(device_x.data + 2 * width, device_weight.data, EPS, 1, width, output.data, nullptr));
  report.expect(same_bits(part(output.host(), 0, width), part(whole, 2 * width, width)), "rms_norm alone " + name);
  CHECK(nucleus_rms_norm(device_x.data, device_weight.data, EPS, rows, width, device_x.data, nullptr));
  report.expect(same_bits(part(device_x.host(), 0, 4 * width), part(whole, 0, 4 * width)), "rms_norm in place " + name);

  for (bool has_post : {false, true}) {
    for (bool has_next : {false, true}) {
      hidden.set(x);
      output.poison();
      NucleusAddNorm call = {hidden.data, device_y.data, has_post ? device_post.data : nullptr, has_next ? device_weight.data : nullptr, output.data, EPS, rows, width};
      CHECK(nucleus_add_norm(&call, nullptr));
      const std::string which = std::string("add_norm") + (has_post ? " post" : "") + (has_next ? " next " : " ") + name;
      const std::vector<double> sum = sum_of(widened(x), has_post ? normalised(widened(y), post, EPS) : widened(y));
      report.expect(worst_error(hidden.host(), sum, 1.0) < 1e-6, which + " sum");
      if (!has_next) continue;
      report.expect(worst_error(output.host(), normalised(sum, weight, EPS), 1e-1) < 4e-6, which);
      whole = output.host();
      std::vector<float> row = part(x, width, width);
      DeviceArray<float> alone(row);
      call.hidden = alone.data;
      call.y += width;
      call.rows = 1;
      CHECK(nucleus_add_norm(&call, nullptr));
      report.expect(same_bits(part(output.host(), 0, width), part(whole, width, width)), which + " alone");
    }
  }
}

void test_activations() {
  for (uint32_t count : {1u, 3u, 4u, 1023u, 100000u}) {
    std::vector<float> gate = random_numbers.normals(count, 4.0f), up = random_numbers.normals(count);
    gate[0] = -100.0f;
    gate[count / 2] = count > 3 ? NAN : 1.0f;
    for (uint32_t activation : {NUCLEUS_SILU, NUCLEUS_GELU_TANH}) {
      DeviceArray<float> device_gate(gate), device_up(up);
      CHECK(nucleus_gated(device_gate.data, device_up.data, count, activation, nullptr));
      std::vector<double> expected(count);
      for (uint32_t i = 0; i < count; ++i) {
        const double x = gate[i];
        const double gelu = 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
        expected[i] = (activation == NUCLEUS_SILU ? x / (1.0 + std::exp(-x)) : gelu) * up[i];
      }
      report.expect(worst_error(device_gate.host(), expected, 1e-1) < 4e-6, "gated " + std::to_string(activation) + " of " + std::to_string(count));
    }
  }
  DeviceArray<float> unused(4);
  report.expect(nucleus_gated(unused.data, unused.data, 4, 9, nullptr) != 0, "an unknown activation is an error");
}

void test_rows() {
  const uint32_t width = 36, rows = 7, stride = 48;
  std::vector<float> x = random_numbers.normals(rows * width);
  std::vector<uint32_t> picked = {6, 0, 3, 3};
  DeviceArray<float> device_x(x), output(picked.size() * width);
  DeviceArray<uint32_t> device_rows(picked);
  CHECK(nucleus_gather_rows(device_x.data, device_rows.data, picked.size(), width, output.data, nullptr));
  std::vector<float> expected;
  for (uint32_t row : picked) expected.insert(expected.end(), x.begin() + row * width, x.begin() + (row + 1) * width);
  report.expect(same_bits(output.host(), expected), "gather_rows");

  std::vector<float> logits = random_numbers.normals(rows * stride, 60.0f);
  DeviceArray<float> device_logits(logits);
  CHECK(nucleus_soft_cap(device_logits.data, 30.0f, rows, 41, stride, nullptr));
  std::vector<double> capped(logits.begin(), logits.end());
  for (uint32_t i = 0; i < rows * stride; ++i) {
    if (i % stride < 41) capped[i] = 30.0 * std::tanh(double(logits[i]) / 30.0);
  }
  report.expect(worst_error(device_logits.host(), capped, 1.0) < 1e-6, "soft_cap");
}

// A row takes what was drawn for its sequence, or is moved to the spare block when that has ended; who draws nothing keeps what the host wrote.
void test_taken_tokens() {
  constexpr uint32_t ROWS = 200, TABLES = ROWS + 3, BLOCKS = 2, STRIDE = 10, STATUS = 4, STOPPED = 9, VOCAB = 50, SPARE = 777, NOTHING = UINT32_MAX;
  std::vector<uint32_t> tokens(ROWS), positions(ROWS), tables(TABLES * BLOCKS), sequences(ROWS), drawn_rows(ROWS), drawn(ROWS * STRIDE, NOTHING);
  for (uint32_t row = 0; row < ROWS; ++row) {
    tokens[row] = 1000 + row;
    positions[row] = 2000 + row;
    sequences[row] = TABLES - 1 - row;
    drawn_rows[row] = row % 5 == 4 ? NOTHING : (row + 7) % ROWS;
    drawn[row * STRIDE] = row % 13 == 0 ? VOCAB + row % 2 * 1000000 : row % VOCAB;
    drawn[row * STRIDE + STATUS] = row % 3 ? 0 : STOPPED;
  }
  std::iota(tables.begin(), tables.end(), 3000u);
  DeviceArray<uint32_t> device_tokens(tokens), device_positions(positions), device_tables(tables), device_sequences(sequences), device_drawn_rows(drawn_rows), device_drawn(drawn);
  const NucleusTakeTokens call = {device_tokens.data, device_positions.data, device_tables.data, device_sequences.data, device_drawn_rows.data, device_drawn.data, STRIDE, STATUS, STOPPED, ROWS, BLOCKS, SPARE, VOCAB};
  CHECK(nucleus_take_tokens(&call, nullptr));
  for (uint32_t row = 0; row < ROWS; ++row) {
    if (drawn_rows[row] == NOTHING) continue;
    const bool ended = drawn_rows[row] % 3 == 0;
    tokens[row] = ended || drawn_rows[row] % 13 == 0 ? 0 : drawn_rows[row] % VOCAB;
    if (!ended) continue;
    positions[row] = 0;
    tables[sequences[row] * BLOCKS] = SPARE;
  }
  report.expect(device_tokens.host() == tokens, "take_tokens: tokens");
  report.expect(device_positions.host() == positions, "take_tokens: positions");
  report.expect(device_tables.host() == tables, "take_tokens: block tables");
}

void test_rotations() {
  const std::vector<uint32_t> positions = {0, 1, 77, 4095, 131071, 2000000};
  std::vector<double> frequencies, expected;
  for (uint32_t i = 0; i < 33; ++i) frequencies.push_back(std::pow(10000.0, -2.0 * i / 66.0));
  for (uint32_t position : positions) {
    for (double frequency : frequencies) {
      expected.push_back(1.25 * std::cos(position * frequency));
      expected.push_back(1.25 * std::sin(position * frequency));
    }
  }
  DeviceArray<uint32_t> device_positions(positions);
  DeviceArray<double> device_frequencies(frequencies);
  DeviceArray<float> output(expected.size());
  CHECK(nucleus_rotations(device_positions.data, positions.size(), device_frequencies.data, 33, 1.25, output.data, nullptr));
  report.expect(worst_error(output.host(), expected, 1.0) < 1e-7, "rotations");
}

struct StoreCase {
  uint32_t head_dim, heads, kv_heads, pairs;
  bool neighbours, norms;
};

// A head after its norm and its rotation.
std::vector<double> turned(const std::vector<double> &head, const StoreCase &c, const float *rotations) {
  std::vector<double> out(head);
  for (uint32_t pair = 0; pair < c.pairs; ++pair) {
    const uint32_t a = c.neighbours ? 2 * pair : pair, b = c.neighbours ? 2 * pair + 1 : pair + c.pairs;
    const double cos = rotations[2 * pair], sin = rotations[2 * pair + 1];
    out[a] = head[a] * cos - head[b] * sin;
    out[b] = head[a] * sin + head[b] * cos;
  }
  return out;
}

void test_store(const StoreCase &c) {
  const std::string name = "store of " + std::to_string(c.head_dim) + ", pairs " + std::to_string(c.pairs) + (c.neighbours ? " neighbours" : " halves");
  const uint32_t blocks_per_table = 3, blocks = 9, stored = stored_width(c.head_dim);
  const std::vector<uint32_t> table = {4, 1, 7, 0, 8, 2}, positions = {0, 17, 30, 47, 5}, of_sequences = {1, 0, 1, 0, 0};
  const uint32_t rows = positions.size();
  std::vector<float> query = random_numbers.normals(rows * c.heads * c.head_dim), key = random_numbers.normals(rows * c.kv_heads * c.head_dim);
  std::vector<float> value = random_numbers.normals(key.size(), 10.0f), rotations = random_numbers.normals(rows * c.pairs * 2);
  const std::vector<float> query_norm = random_numbers.normals(c.head_dim), key_norm = random_numbers.normals(c.head_dim);
  value[1] = 1e6f;
  value[2] = -INFINITY;
  value[3] = NAN;
  DeviceArray<float> device_query(query), device_key(key), device_value(value), device_rotations(rotations), device_query_norm(query_norm), device_key_norm(key_norm);
  DeviceArray<uint32_t> device_table(table), device_positions(positions), device_sequences(of_sequences);
  const size_t cache_size = nucleus_cache_bytes(blocks, c.kv_heads, c.head_dim) / sizeof(__half);
  DeviceArray<uint16_t> keys(cache_size), values(cache_size);
  NucleusRotateStore call = {};
  call.rows = {device_positions.data, device_sequences.data, device_table.data, blocks_per_table, rows};
  call.cache = {keys.data, values.data, c.kv_heads, c.head_dim};
  call.query = device_query.data;
  call.key = device_key.data;
  call.value = device_value.data;
  call.heads = c.heads;
  call.query_norm = c.norms ? device_query_norm.data : nullptr;
  call.key_norm = c.norms ? device_key_norm.data : nullptr;
  call.eps = EPS;
  call.rotations = device_rotations.data;
  call.pairs = c.pairs;
  call.neighbours = c.neighbours;
  CHECK(nucleus_rotate_store(&call, nullptr));
  const auto states = [&](const std::vector<float> &x, uint32_t row, uint32_t heads, uint32_t head, const std::vector<float> &norm) {
    std::vector<double> one = widened(part(x, (size_t(row) * heads + head) * c.head_dim, c.head_dim));
    if (c.norms) one = normalised(one, norm, EPS);
    return turned(one, c, rotations.data() + size_t(row) * c.pairs * 2);
  };
  std::vector<double> expected;
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint32_t head = 0; head < c.heads; ++head) {
      for (double x : states(query, row, c.heads, head, query_norm)) expected.push_back(x);
    }
  }
  report.expect(worst_error(device_query.host(), expected, 1.0) < 2e-6, name + ": queries");

  // What the cache should hold, and NaNs where nothing was written.
  std::vector<uint16_t> held_keys = keys.host(), held_values = values.host();
  const auto number = [](uint16_t bits) {
    __half_raw raw;
    raw.x = bits;
    return __half2float(__half(raw));
  };
  size_t written = 0;
  bool keys_right = true, values_right = true, padding_right = true;
  for (uint32_t row = 0; row < rows; ++row) {
    const uint32_t block = table[of_sequences[row] * blocks_per_table + positions[row] / 16], slot = positions[row] % 16;
    for (uint32_t head = 0; head < c.kv_heads; ++head) {
      const size_t start = nucleus::head_block(block, c.kv_heads, head, stored);
      const std::vector<double> k = states(key, row, c.kv_heads, head, key_norm);
      for (uint32_t d = 0; d < stored; ++d, ++written) {
        const float in_keys = number(held_keys[start + place_in_block(slot, d)]), in_values = number(held_values[start + place_in_block(slot, d)]);
        if (d >= c.head_dim) {
          padding_right &= in_keys == 0.0f && in_values == 0.0f;
          continue;
        }
        const float v = value[(size_t(row) * c.kv_heads + head) * c.head_dim + d];
        const float stored_v = std::isfinite(v) ? std::min(std::max(v, -65504.0f), 65504.0f) : v;
        values_right &= std::isnan(v) ? std::isnan(in_values) : in_values == __half2float(__float2half_rn(stored_v));
        keys_right &= std::fabs(in_keys - k[d]) <= 1e-3 * std::max(1e-2, std::fabs(k[d]));
      }
    }
  }
  report.expect(keys_right, name + ": keys");
  report.expect(values_right, name + ": values");
  report.expect(padding_right, name + ": zeros behind narrow heads");
  const auto untouched = [](const std::vector<uint16_t> &held) { return size_t(std::count(held.begin(), held.end(), uint16_t(0xFFFF))); };
  report.expect(untouched(held_keys) == cache_size - written, name + ": nothing else is written to the keys");
  report.expect(untouched(held_values) + written >= cache_size, name + ": nothing else is written to the values");

  // A row alone.
  const std::vector<float> whole = device_query.host();
  DeviceArray<float> again(query), key_again(key);
  DeviceArray<uint16_t> keys_alone(cache_size), values_alone(cache_size);
  call.query = again.data + size_t(2) * c.heads * c.head_dim;
  call.key = key_again.data + size_t(2) * c.kv_heads * c.head_dim;
  call.value = device_value.data + size_t(2) * c.kv_heads * c.head_dim;
  call.rotations = device_rotations.data + size_t(2) * c.pairs * 2;
  call.rows.positions += 2;
  call.rows.sequences += 2;
  call.rows.rows = 1;
  call.cache.keys = keys_alone.data;
  call.cache.values = values_alone.data;
  CHECK(nucleus_rotate_store(&call, nullptr));
  const size_t row_size = size_t(c.heads) * c.head_dim;
  report.expect(same_bits(part(again.host(), 2 * row_size, row_size), part(whole, 2 * row_size, row_size)), name + ": queries alone");
  bool same = true;
  const std::vector<uint16_t> alone = keys_alone.host();
  // Row 2 is position 30 of sequence 1.
  for (uint32_t head = 0; head < c.kv_heads; ++head) {
    for (uint32_t d = 0; d < stored; ++d) {
      const size_t place = nucleus::head_block(table[blocks_per_table + 1], c.kv_heads, head, stored) + place_in_block(14, d);
      same &= alone[place] == held_keys[place];
    }
  }
  report.expect(same, name + ": keys alone");
}

// Times over data that the caches cannot hold from one call to the next: copies of the buffers, taken in turn.
void print_times() {
  print_machine();
  std::printf("%-44s %9s %9s\n", "kernel", "us", "GB/s");
  const auto print = [](const std::string &name, double milliseconds, double bytes) {
    std::printf("%-44s %9.2f %9.0f\n", name.c_str(), 1e3 * milliseconds, bytes / milliseconds * 1e-6);
  };
  for (uint32_t rows : {1u, 16u, 64u, 256u, 512u, 2048u}) {
    const uint32_t width = 4096, inner = 14336, copies = std::max(4u, std::min(64u, 32768u / rows));
    const size_t size = size_t(rows) * width;
    const std::string suffix = " " + std::to_string(rows) + " x 4096";
    DeviceArray<float> x(size * copies), y(size * copies), weight(random_numbers.normals(width)), output(size);
    CHECK(cudaMemset(x.data, 0x3C, x.bytes()));
    CHECK(cudaMemset(y.data, 0x3C, y.bytes()));
    print("rms_norm" + suffix, time_each(copies, [&](cudaStream_t s, uint32_t i) { CHECK(nucleus_rms_norm(x.data + i * size, weight.data, EPS, rows, width, output.data, s)); }), 8.0 * size);
    print("add_norm" + suffix, time_each(copies, [&](cudaStream_t s, uint32_t i) {
            NucleusAddNorm call = {x.data + i * size, y.data + i * size, nullptr, weight.data, output.data, EPS, rows, width};
            CHECK(nucleus_add_norm(&call, s));
          }), 16.0 * size);
    const size_t inner_size = size_t(rows) * inner;
    const uint32_t inner_copies = std::max(2u, std::min(32u, 8192u / rows));
    DeviceArray<float> gate(inner_size * inner_copies), up(inner_size * inner_copies);
    CHECK(cudaMemset(gate.data, 0x3C, gate.bytes()));
    CHECK(cudaMemset(up.data, 0x3C, up.bytes()));
    for (uint32_t activation : {NUCLEUS_SILU, NUCLEUS_GELU_TANH}) {
      print(std::string(activation == NUCLEUS_SILU ? "gated silu " : "gated gelu ") + std::to_string(rows) + " x 14336",
            time_each(inner_copies, [&](cudaStream_t s, uint32_t i) { CHECK(nucleus_gated(gate.data + i * inner_size, up.data + i * inner_size, inner_size, activation, s)); }),
            12.0 * inner_size);
    }
    // 32 heads, 8 key heads of 128.
    const uint32_t heads = 32, kv_heads = 8, head_dim = 128, blocks = 4096, store_copies = std::max(2u, std::min(32u, 8192u / rows));
    std::vector<uint32_t> table(rows), positions(rows), sequences(rows);
    // Rows that decode, each in a block of its own, or those of a prompt.
    for (uint32_t i = 0; i < rows; ++i) table[i] = rows <= 256 ? random_numbers.below(blocks) : i / 16, positions[i] = i % 16, sequences[i] = i;
    DeviceArray<uint32_t> device_table(table), device_positions(positions), device_sequences(sequences);
    DeviceArray<float> query(size * store_copies), key(size / 4 * store_copies), value(size / 4 * store_copies), rotations(size_t(rows) * head_dim);
    DeviceArray<double> frequencies(std::vector<double>(64, 0.1));
    CHECK(cudaMemset(query.data, 0x3C, query.bytes()));
    CHECK(cudaMemset(key.data, 0x3C, key.bytes()));
    CHECK(cudaMemset(value.data, 0x3C, value.bytes()));
    DeviceArray<uint16_t> keys(nucleus_cache_bytes(blocks, kv_heads, head_dim) / 2), values(nucleus_cache_bytes(blocks, kv_heads, head_dim) / 2);
    print("rotations " + std::to_string(rows) + " x 64", time_each(16, [&](cudaStream_t s, uint32_t) {
            CHECK(nucleus_rotations(device_positions.data, rows, frequencies.data, 64, 1.0, rotations.data, s));
          }), 4.0 * rows * head_dim);
    for (bool norms : {false, true}) {
      print("rotate_store " + std::to_string(rows) + " x (32 + 8 + 8) x 128" + (norms ? " norms" : ""), time_each(store_copies, [&](cudaStream_t s, uint32_t i) {
              NucleusRotateStore call = {};
              call.rows = {device_positions.data, device_sequences.data, device_table.data, 1, rows};
              call.cache = {keys.data, values.data, kv_heads, head_dim};
              call.query = query.data + i * size;
              call.key = key.data + i * size / 4;
              call.value = value.data + i * size / 4;
              call.heads = heads;
              call.query_norm = call.key_norm = norms ? weight.data : nullptr;
              call.eps = EPS;
              call.rotations = rotations.data;
              call.pairs = 64;
              CHECK(nucleus_rotate_store(&call, s));
            }), 8.0 * size + 3.0 * size);
    }
  }
  const uint32_t vocab = 262144;
  DeviceArray<float> logits(size_t(64) * vocab);
  CHECK(cudaMemset(logits.data, 0x3C, logits.bytes()));
  print("soft_cap 32 x 262144", time_each(2, [&](cudaStream_t s, uint32_t i) { CHECK(nucleus_soft_cap(logits.data + size_t(i) * 32 * vocab, 30.0f, 32, vocab, vocab, s)); }),
        8.0 * 32 * vocab);
}

}  // namespace

int main(int argc, char **argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "quick") == 0;
  for (uint32_t width : {4u, 64u, 100u, 288u, 640u, 2048u, 3072u, 4096u, 8192u, 16384u}) test_norms(width);
  DeviceArray<float> unused(8);
  report.expect(nucleus_rms_norm(unused.data, unused.data, EPS, 1, 6, unused.data, nullptr) != 0, "a width that is no multiple of 4 is an error");
  test_activations();
  test_rows();
  test_taken_tokens();
  test_rotations();
  for (const StoreCase &c : {StoreCase{128, 8, 2, 64, false, false}, StoreCase{128, 8, 2, 64, true, true}, StoreCase{128, 4, 1, 20, false, true},
                             StoreCase{64, 3, 3, 32, true, false}, StoreCase{96, 6, 2, 48, false, false}, StoreCase{80, 4, 4, 10, true, false},
                             StoreCase{256, 2, 1, 128, false, true}, StoreCase{16, 4, 2, 8, false, false}, StoreCase{8, 4, 2, 4, true, false},
                             StoreCase{24, 2, 1, 5, false, false}}) {
    test_store(c);
  }
  const int failed = report.finish("pointwise");
  if (!quick && !failed) print_times();
  return failed;
}
