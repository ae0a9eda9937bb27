// Attention against float64; then that a row's bits depend on nothing beside it; then faults that stay in their rows, a cache beyond 2^31 numbers, and times.
// Usage: attention_test [tiny | quick | times]; tiny is for tools that slow a program down a thousandfold.
#include <cuda_fp16.h>

#include <numeric>

#include "../kernels/cache_layout.cuh"
#include "../kernels/splits.cuh"
#include "testing.cuh"

namespace {

Report report;
Random random_numbers{11};
double worst_of_all = 0.0;

struct Model {
  uint32_t head_dim, heads, kv_heads;
  float soft_cap = 0.0f;
  uint32_t window = 0;

  float scale() const { return 1.0f / std::sqrt(float(head_dim)); }
  std::string name() const {
    std::string text = std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim);
    if (soft_cap != 0.0f) text += ", cap " + std::to_string(int(soft_cap));
    if (window != 0) text += ", window " + std::to_string(window);
    return text;
  }
};

// softmax(cap · tanh(scale · q·k / cap)) · v of one query head, from keys and values [positions, kv_heads, head_dim].
__host__ __device__ void reference(const Model &m, float scale, const float *query, const __half *keys, const __half *values, uint32_t kv_head, uint32_t position,
                                   double *output) {
  const uint32_t first = m.window != 0 && position >= m.window ? position - m.window + 1 : 0;
  double sum = 0.0, largest = -INFINITY;
  for (uint32_t d = 0; d < m.head_dim; ++d) output[d] = 0.0;
  for (uint32_t p = first; p <= position; ++p) {
    const size_t place = (size_t(p) * m.kv_heads + kv_head) * m.head_dim;
    double score = 0.0;
    for (uint32_t d = 0; d < m.head_dim; ++d) score += double(query[d]) * double(__half2float(keys[place + d]));
    score *= scale;
    if (m.soft_cap != 0.0f) score = m.soft_cap * tanh(score / m.soft_cap);
    const double bound = score > largest ? score : largest, kept = exp(largest - bound), weight = exp(score - bound);
    largest = bound;
    sum = sum * kept + weight;
    for (uint32_t d = 0; d < m.head_dim; ++d) output[d] = output[d] * kept + weight * double(__half2float(values[place + d]));
  }
  for (uint32_t d = 0; d < m.head_dim; ++d) output[d] /= sum;
}

__global__ void reference_kernel(Model m, float scale, const float *queries, const __half *keys, const __half *values, const uint32_t *positions, uint32_t rows,
                                 double *outputs) {
  const uint32_t item = blockIdx.x * blockDim.x + threadIdx.x;
  if (item >= rows * m.heads) return;
  const uint32_t row = item / m.heads, kv_head = item % m.heads / (m.heads / m.kv_heads);
  reference(m, scale, queries + size_t(item) * m.head_dim, keys, values, kv_head, positions[row], outputs + size_t(item) * m.head_dim);
}

// One sequence's keys and values, plain and in a paged cache whose blocks lie in disorder, and queries of its last rows.
struct Sequence {
  Model m;
  uint32_t length, rows, pool;
  std::vector<float> keys, values, queries;
  DeviceArray<float> device_keys, device_values, device_queries;
  DeviceArray<uint16_t> cached_keys, cached_values;
  std::vector<uint32_t> table;
  DeviceArray<uint32_t> device_table;

  // Its blocks lie at the end of a pool of so many, if it needs fewer.
  Sequence(const Model &m, uint32_t length, uint32_t rows, uint32_t pool = 0)
      : m(m),
        length(length),
        rows(rows),
        pool(std::max(pool, blocks())),
        keys(numbers(length, m.kv_heads)),
        values(numbers(length, m.kv_heads)),
        queries(random_numbers.normals(size_t(rows) * m.heads * m.head_dim, 2.0f)),
        device_keys(keys),
        device_values(values),
        device_queries(queries),
        cached_keys(cache_size()),
        cached_values(cache_size()),
        table(shuffled(blocks())),
        device_table(at_end_of_pool(table)) {
    store(0, length);
  }

  uint32_t blocks() const { return length / 16 + 3; }
  size_t cache_size() const { return nucleus_cache_bytes(pool, m.kv_heads, m.head_dim) / 2; }
  uint32_t first() const { return length - rows; }

  // Numbers that float16 holds exactly.
  std::vector<float> numbers(uint32_t positions, uint32_t heads) const {
    std::vector<float> x = random_numbers.normals(size_t(positions) * heads * m.head_dim);
    for (float &v : x) v = __half2float(__float2half_rn(v));
    return x;
  }

  static std::vector<uint32_t> shuffled(uint32_t count) {
    std::vector<uint32_t> ids(count);
    std::iota(ids.begin(), ids.end(), 0u);
    for (uint32_t i = count; i > 1; --i) std::swap(ids[i - 1], ids[random_numbers.below(i)]);
    return ids;
  }

  std::vector<uint32_t> at_end_of_pool(std::vector<uint32_t> ids) const {
    for (uint32_t &id : ids) id = pool - 1 - id;
    return ids;
  }

  NucleusCache cache() const { return {cached_keys.data, cached_values.data, m.kv_heads, m.head_dim}; }

  // Writes positions to the cache, without a rotation.
  void store(uint32_t begin, uint32_t end) {
    if (begin == end) return;
    std::vector<uint32_t> positions(end - begin), zeros(end - begin, 0);
    std::iota(positions.begin(), positions.end(), begin);
    DeviceArray<uint32_t> device_positions(positions), device_sequences(zeros);
    DeviceArray<float> unused(4);
    NucleusRotateStore call = {};
    call.rows = {device_positions.data, device_sequences.data, device_table.data, blocks(), end - begin};
    call.cache = cache();
    call.query = unused.data;
    call.key = device_keys.data + size_t(begin) * m.kv_heads * m.head_dim;
    call.value = device_values.data + size_t(begin) * m.kv_heads * m.head_dim;
    call.rotations = unused.data;
    CHECK(nucleus_rotate_store(&call, nullptr));
    CHECK(cudaDeviceSynchronize());
  }

  std::vector<double> expected() const {
    const auto halves = [](const std::vector<float> &x) {
      std::vector<__half> y(x.size());
      for (size_t i = 0; i < x.size(); ++i) y[i] = __float2half_rn(x[i]);
      return y;
    };
    std::vector<uint32_t> positions(rows);
    std::iota(positions.begin(), positions.end(), first());
    const std::vector<__half> k = halves(keys), v = halves(values);
    std::vector<double> output(size_t(rows) * m.heads * m.head_dim);
    if (size_t(length) * rows * m.heads * m.head_dim < 4000000) {
      for (uint32_t item = 0; item < rows * m.heads; ++item) {
        reference(m, m.scale(), queries.data() + size_t(item) * m.head_dim, k.data(), v.data(), item % m.heads / (m.heads / m.kv_heads), positions[item / m.heads],
                  output.data() + size_t(item) * m.head_dim);
      }
      return output;
    }
    DeviceArray<__half> device_k(k), device_v(v);
    DeviceArray<uint32_t> device_positions(positions);
    DeviceArray<double> device_output(output.size());
    reference_kernel<<<(rows * m.heads + 31) / 32, 32>>>(m, m.scale(), device_queries.data, device_k.data, device_v.data, device_positions.data, rows, device_output.data);
    CHECK(cudaGetLastError());
    return device_output.host();
  }
};

// How the rows of a call are cut, and what else may not change a bit.
struct Way {
  uint32_t tile_rows;            // 1: rows that decode
  uint32_t max_context = 0;      // 0: the context
  bool workspace = true;
};

// A call for rows begin … end of a sequence's, and what it reads and writes.
struct Call {
  std::vector<uint32_t> positions;
  std::vector<NucleusTile> tiles;
  DeviceArray<uint32_t> device_positions, device_sequences;
  DeviceArray<NucleusTile> device_tiles;
  DeviceArray<float> output;
  NucleusAttention call = {};

  Call(const Sequence &s, const Way &way, uint32_t begin, uint32_t end)
      : positions(positions_of(s.first() + begin, end - begin)),
        tiles(tiles_of(end - begin, way.tile_rows)),
        device_positions(positions),
        device_sequences(std::vector<uint32_t>(end - begin, 0)),
        device_tiles(tiles),
        output(size_t(end - begin) * s.m.heads * s.m.head_dim) {
    const Model &m = s.m;
    call.rows = {device_positions.data, device_sequences.data, s.device_table.data, s.blocks(), end - begin};
    call.cache = s.cache();
    call.query = s.device_queries.data + size_t(begin) * m.heads * m.head_dim;
    call.output = output.data;
    call.heads = m.heads;
    call.scale = m.scale();
    call.soft_cap = m.soft_cap;
    call.window = m.window;
    call.tiles = device_tiles.data;
    call.tile_count = tiles.size();
    call.max_context = way.max_context ? way.max_context : s.length;
  }

  static std::vector<uint32_t> positions_of(uint32_t first, uint32_t count) {
    std::vector<uint32_t> positions(count);
    std::iota(positions.begin(), positions.end(), first);
    return positions;
  }

  static std::vector<NucleusTile> tiles_of(uint32_t rows, uint32_t tile_rows) {
    std::vector<NucleusTile> tiles;
    for (uint32_t row = 0; row < rows; row += tile_rows) tiles.push_back({row, std::min(tile_rows, rows - row)});
    return tiles;
  }

  size_t workspace_bytes() const { return nucleus_attention_workspace(call.rows.rows, call.heads, call.cache.head_dim, call.max_context); }

  void queue(DeviceArray<char> &workspace, cudaStream_t stream = nullptr) {
    call.workspace = workspace.data;
    call.workspace_bytes = workspace.count;
    CHECK(nucleus_attention(&call, stream));
  }
};

// The attention of rows begin … end of a sequence's.
std::vector<float> attend(const Sequence &s, const Way &way, uint32_t begin, uint32_t end) {
  Call call(s, way, begin, end);
  DeviceArray<char> workspace(way.workspace ? call.workspace_bytes() : 0);
  call.queue(workspace);
  CHECK(cudaDeviceSynchronize());
  return call.output.host();
}

std::vector<float> attend(const Sequence &s, Way way) { return attend(s, way, 0, s.rows); }

std::vector<float> rows_of(const Sequence &s, const std::vector<float> &output, uint32_t begin, uint32_t end) {
  const size_t size = size_t(s.m.heads) * s.m.head_dim;
  return {output.begin() + begin * size, output.begin() + end * size};
}

uint32_t most_tile_rows(const Model &m) { return nucleus_attention_tile_rows(m.heads / m.kv_heads, m.head_dim); }

void test_sequence(const Model &m, uint32_t length, uint32_t rows, uint32_t pool = 0) {
  const Sequence s(m, length, rows, pool);
  const std::string name = m.name() + ", context " + std::to_string(length) + ", rows " + std::to_string(rows) + ": ";
  const std::vector<float> decoded = attend(s, {1});
  const double error = worst_error(decoded, s.expected(), 0.1);
  worst_of_all = std::max(worst_of_all, error);
  report.expect(error < 2e-5, name + "error " + std::to_string(error * 1e6) + "e-6");
  const uint32_t most = most_tile_rows(m);
  const auto same = [&](Way way, const char *what) { report.expect(same_bits(attend(s, way), decoded), name + what); };
  same({1, 0, false}, "without a workspace");
  same({1, 131072}, "for contexts up to 131,072");
  same({most}, "as a prompt");
  same({most, 131072, false}, "as a prompt without a workspace");
  same({std::max(1u, most - 1)}, "in tiles not quite full");
  same({3}, "in tiles of 3");
  const uint32_t middle = rows / 2;
  report.expect(same_bits(attend(s, {1}, middle, middle + 1), rows_of(s, decoded, middle, middle + 1)), name + "a row alone");
  report.expect(same_bits(attend(s, {most}, middle, rows), rows_of(s, decoded, middle, rows)), name + "the second chunk of a prompt");
}

// Several sequences in one call, some rows decoding and some in tiles, of one cache.
void test_mixed(const Model &m) {
  const uint32_t long_length = 1500, rows = 100;
  const Sequence s(m, long_length, rows);
  const std::vector<float> alone = attend(s, {1});
  // A second table names the same blocks: the sequence as it was 40 positions shorter.
  std::vector<uint32_t> tables = s.device_table.host();
  tables.insert(tables.end(), tables.begin(), tables.begin() + s.blocks());
  std::vector<uint32_t> positions, sequences;
  std::vector<NucleusTile> tiles;
  std::vector<uint32_t> sources;
  const auto add = [&](uint32_t sequence, uint32_t begin, uint32_t end) {
    tiles.push_back({uint32_t(positions.size()), end - begin});
    for (uint32_t row = begin; row < end; ++row) positions.push_back(s.first() + row), sequences.push_back(sequence), sources.push_back(row);
  };
  const uint32_t most = most_tile_rows(m);
  add(1, 17, 18);
  add(0, 0, std::min(most, 60u));
  add(0, 99, 100);
  add(1, 60 - std::min(most, 60u) / 2, 60);
  add(0, 5, 6);
  const size_t size = size_t(m.heads) * m.head_dim;
  std::vector<float> queries, expected;
  for (uint32_t row : sources) {
    queries.insert(queries.end(), s.queries.begin() + row * size, s.queries.begin() + (row + 1) * size);
    expected.insert(expected.end(), alone.begin() + row * size, alone.begin() + (row + 1) * size);
  }
  DeviceArray<uint32_t> device_positions(positions), device_sequences(sequences), device_tables(tables);
  DeviceArray<NucleusTile> device_tiles(tiles);
  DeviceArray<float> device_queries(queries), output(queries.size());
  DeviceArray<char> workspace(nucleus_attention_workspace(positions.size(), m.heads, m.head_dim, 4000));
  NucleusAttention call = {};
  call.rows = {device_positions.data, device_sequences.data, device_tables.data, s.blocks(), uint32_t(positions.size())};
  call.cache = s.cache();
  call.query = device_queries.data;
  call.output = output.data;
  call.heads = m.heads;
  call.scale = m.scale();
  call.soft_cap = m.soft_cap;
  call.window = m.window;
  call.tiles = device_tiles.data;
  call.tile_count = tiles.size();
  call.max_context = 4000;
  call.workspace = workspace.data;
  call.workspace_bytes = workspace.count;
  for (uint32_t repeat = 0; repeat < 2; ++repeat) {
    output.poison();
    CHECK(nucleus_attention(&call, nullptr));
    CHECK(cudaDeviceSynchronize());
    report.expect(same_bits(output.host(), expected), m.name() + ": a mixed batch");
  }
}

// Calls that follow each other at once, with one workspace, do not disturb each other; nor do they in a graph.
void test_back_to_back(const Model &m) {
  const Sequence s(m, 3000, 60);
  const uint32_t most = most_tile_rows(m);
  const std::vector<float> expected = attend(s, {1});
  Call few(s, {1}, 7, 9), many(s, {1}, 0, 60), prompt(s, {most}, 0, 60);
  DeviceArray<char> workspace(std::max({few.workspace_bytes(), many.workspace_bytes(), prompt.workspace_bytes()}));
  const auto queue = [&](cudaStream_t stream) {
    for (Call *call : {&few, &many, &prompt, &few}) call->queue(workspace, stream);
  };
  const auto check = [&](const std::string &how) {
    CHECK(cudaDeviceSynchronize());
    report.expect(same_bits(few.output.host(), rows_of(s, expected, 7, 9)), m.name() + ": few rows, " + how);
    report.expect(same_bits(many.output.host(), expected), m.name() + ": many rows, " + how);
    report.expect(same_bits(prompt.output.host(), expected), m.name() + ": a prompt, " + how);
    for (Call *call : {&few, &many, &prompt}) call->output.poison();
  };
  for (uint32_t i = 0; i < 10; ++i) queue(nullptr);
  check("back to back");
  time_each(10, [&](cudaStream_t stream, uint32_t) { queue(stream); });
  check("in a graph");
}

// What lies behind a row's position, and faults of other rows, do not reach it.
void test_faults(const Model &m) {
  const uint32_t length = 600, rows = 70, faulty = 35;
  Sequence s(m, length, rows);
  const std::vector<float> good = attend(s, {1});
  const uint32_t most = most_tile_rows(m);
  const size_t position_size = size_t(m.kv_heads) * m.head_dim, row_size = size_t(m.heads) * m.head_dim;

  // Row 35 alone, with nothing, with NaNs and with the largest numbers behind it.
  const uint32_t position = s.first() + faulty;
  for (float behind : {NAN, 65504.0f, -65504.0f, 0.0f}) {
    std::vector<float> keys(s.keys), values(s.values);
    std::fill(keys.begin() + (position + 1) * position_size, keys.end(), behind);
    std::fill(values.begin() + (position + 1) * position_size, values.end(), behind);
    s.device_keys.set(keys);
    s.device_values.set(values);
    s.store(0, length);
    report.expect(same_bits(attend(s, {1}, faulty, faulty + 1), rows_of(s, good, faulty, faulty + 1)), m.name() + ": " + std::to_string(behind) + " behind a row");
    report.expect(same_bits(rows_of(s, attend(s, {most}), 0, faulty + 1), rows_of(s, good, 0, faulty + 1)), m.name() + ": " + std::to_string(behind) + " behind rows of a prompt");
  }

  // One value, then one key, is NaN or infinite: earlier rows keep their bits, later rows fail unless their window has passed it.
  for (bool in_key : {false, true}) {
    for (float fault : {float(NAN), float(INFINITY)}) {
      std::vector<float> keys(s.keys), values(s.values);
      (in_key ? keys : values)[position * position_size + 1] = fault;
      s.device_keys.set(keys);
      s.device_values.set(values);
      s.store(0, length);
      for (uint32_t tile_rows : {1u, 3u, most}) {
        const std::vector<float> output = attend(s, {tile_rows});
        const std::string name = m.name() + ": a fault in a " + (in_key ? "key" : "value") + ", tiles of " + std::to_string(tile_rows);
        report.expect(same_bits(rows_of(s, output, 0, faulty), rows_of(s, good, 0, faulty)), name + ": rows before it");
        bool all = true;
        for (uint32_t row = faulty; row < rows; ++row) {
          if (m.window != 0 && row - faulty >= m.window) continue;
          all &= !std::isfinite(output[row * row_size + 1]);
        }
        if (!in_key || std::isnan(fault)) report.expect(all, name + ": rows after it");
      }
    }
  }
  s.device_keys.set(s.keys);
  s.device_values.set(s.values);
  s.store(0, length);

  // One row's query.
  for (float fault : {float(NAN), float(INFINITY)}) {
    std::vector<float> queries(s.queries);
    queries[faulty * row_size + 2] = fault;
    s.device_queries.set(queries);
    for (uint32_t tile_rows : {1u, most}) {
      const std::vector<float> output = attend(s, {tile_rows});
      const bool others = same_bits(rows_of(s, output, 0, faulty), rows_of(s, good, 0, faulty)) && same_bits(rows_of(s, output, faulty + 1, rows), rows_of(s, good, faulty + 1, rows));
      report.expect(others && std::isnan(output[faulty * row_size]), m.name() + ": a fault in a query, tiles of " + std::to_string(tile_rows));
    }
  }
}

// Queries of any size: their scores stay right.
void test_extremes() {
  const Model m{64, 4, 2};
  for (float size : {1e-30f, 1e-6f, 1e4f, 1e5f}) {
    Sequence s(m, 300, 3);
    for (float &x : s.queries) x *= size;
    s.device_queries.set(s.queries);
    const double error = worst_error(attend(s, {1}), s.expected(), 0.1);
    // The scores' own rounding to float32 grows with them.
    report.expect(error < 2e-5 + 1e-6 * size, "queries of size " + std::to_string(size) + ": error " + std::to_string(error * 1e6) + "e-6");
  }
}

__global__ void fill(__half *x, uint64_t count) {
  for (uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += uint64_t(gridDim.x) * blockDim.x) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    x[i] = __float2half_rn(float(int32_t(z >> 32)) * 0x1p-31f);
  }
}

__global__ void __launch_bounds__(256) read_all(const uint4 *x, uint64_t count, uint32_t *sink) {
  constexpr uint32_t AT_ONCE = 8;
  uint32_t sum = 0;
  const uint64_t tile = AT_ONCE * blockDim.x;
  for (uint64_t first = blockIdx.x * tile; first + tile <= count; first += gridDim.x * tile) {
    uint4 values[AT_ONCE];
#pragma unroll
    for (uint32_t j = 0; j < AT_ONCE; ++j) values[j] = __ldcs(x + first + j * blockDim.x + threadIdx.x);
#pragma unroll
    for (uint32_t j = 0; j < AT_ONCE; ++j) sum += values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

// What can be had of the memory: the rate of a kernel that only reads.
double read_gigabytes_a_second() {
  DeviceArray<uint4> from(size_t(1) << 28);
  DeviceArray<uint32_t> sink(1);
  const double ms = time_each(2, [&](cudaStream_t s, uint32_t) { read_all<<<132 * 8, 256, 0, s>>>(from.data, from.count, sink.data); });
  return double(from.bytes()) / ms * 1e-6;
}

struct Timing {
  double milliseconds, bytes, operations;
};

// `sequences` sequences of `context` positions, of which the last `rows` are computed; over layers of caches, as a model goes through them.
Timing time_attention(const Model &m, uint32_t sequences, uint32_t context, uint32_t rows, uint32_t max_context) {
  const uint32_t blocks_a_sequence = (context + 15) / 16, blocks = sequences * blocks_a_sequence;
  const size_t layer_bytes = nucleus_cache_bytes(blocks, m.kv_heads, m.head_dim);
  const uint32_t layers = uint32_t(std::min<size_t>(32, std::max<size_t>(2, (size_t(1) << 30) / layer_bytes)));
  DeviceArray<__half> keys(layer_bytes / 2 * layers), values(layer_bytes / 2 * layers);
  fill<<<4096, 256>>>(keys.data, keys.count);
  fill<<<4096, 256>>>(values.data, values.count);
  std::vector<uint32_t> table = Sequence::shuffled(blocks), positions, of_sequences;
  std::vector<NucleusTile> tiles;
  const uint32_t tile_rows = rows == 1 ? 1 : most_tile_rows(m);
  for (uint32_t i = 0; i < sequences; ++i) {
    for (uint32_t row = 0; row < rows; ++row) {
      if (row % tile_rows == 0) tiles.push_back({uint32_t(positions.size()), std::min(tile_rows, rows - row)});
      positions.push_back(context - rows + row);
      of_sequences.push_back(i);
    }
  }
  const size_t width = size_t(m.heads) * m.head_dim;
  DeviceArray<uint32_t> device_table(table), device_positions(positions), device_sequences(of_sequences);
  DeviceArray<NucleusTile> device_tiles(tiles);
  DeviceArray<float> queries(random_numbers.normals(std::min<size_t>(positions.size() * width, 1 << 20))), output(positions.size() * width);
  DeviceArray<float> all_queries(positions.size() * width);
  for (size_t at = 0; at < all_queries.count; at += queries.count) {
    CHECK(cudaMemcpy(all_queries.data + at, queries.data, std::min(queries.count, all_queries.count - at) * sizeof(float), cudaMemcpyDeviceToDevice));
  }
  DeviceArray<char> workspace(nucleus_attention_workspace(positions.size(), m.heads, m.head_dim, max_context));
  const double ms = time_each(layers, [&](cudaStream_t stream, uint32_t layer) {
    NucleusAttention call = {};
    call.rows = {device_positions.data, device_sequences.data, device_table.data, blocks_a_sequence, uint32_t(positions.size())};
    call.cache = {keys.data + layer * (layer_bytes / 2), values.data + layer * (layer_bytes / 2), m.kv_heads, m.head_dim};
    call.query = all_queries.data;
    call.output = output.data;
    call.heads = m.heads;
    call.scale = m.scale();
    call.soft_cap = m.soft_cap;
    call.window = m.window;
    call.tiles = device_tiles.data;
    call.tile_count = tiles.size();
    call.max_context = max_context;
    call.workspace = workspace.data;
    call.workspace_bytes = workspace.count;
    CHECK(nucleus_attention(&call, stream));
  });
  const double reach = m.window != 0 ? std::min(m.window, context) : context;
  double pairs = 0.0;
  for (uint32_t position : positions) pairs += m.window != 0 ? std::min(m.window, position + 1) : position + 1;
  return {ms, 4.0 * sequences * reach * m.kv_heads * m.head_dim, 4.0 * pairs * m.heads * m.head_dim};
}

void print_times() {
  print_machine();
  const double peak = read_gigabytes_a_second();
  std::printf("a kernel that only reads: %.0f GB/s\n", peak);
  std::printf("%-42s %5s %8s %10s %9s %8s\n", "decode", "rows", "context", "us", "GB/s", "of that");
  const auto decode = [&](const Model &m, uint32_t sequences, uint32_t context, uint32_t max_context) {
    const Timing t = time_attention(m, sequences, context, 1, max_context);
    const double rate = t.bytes / t.milliseconds * 1e-6;
    std::printf("%-42s %5u %8u %10.2f %9.0f %7.1f%%%s\n", m.name().c_str(), sequences, context, 1e3 * t.milliseconds, rate, 100.0 * rate / peak,
                max_context != context ? " max_context 8192" : "");
  };
  const Model eight{128, 32, 8}, one{64, 32, 8};
  for (const Model &m : {eight, one}) {
    for (uint32_t context : {128u, 512u, 2048u, 8192u}) {
      for (uint32_t sequences : {1u, 4u, 16u, 32u, 64u, 128u, 256u}) decode(m, sequences, context, context);
    }
    for (uint32_t context : {32768u, 131072u}) decode(m, 1, context, context);
    for (uint32_t sequences : {1u, 16u, 256u}) decode(m, sequences, 512, 8192);
  }
  for (const Model &m : {Model{128, 28, 4}, Model{96, 32, 32}, Model{80, 32, 32}, Model{256, 16, 8}, Model{256, 8, 1}, Model{128, 64, 8}, Model{256, 16, 8, 50.0f, 4096}}) {
    for (uint32_t sequences : {1u, 16u, 64u}) decode(m, sequences, 8192, 8192);
  }
  std::printf("%-42s %5s %8s %10s %9s\n", "prompt", "rows", "context", "us", "TFLOP/s");
  const auto prompt = [&](const Model &m, uint32_t rows, uint32_t context) {
    const Timing t = time_attention(m, 1, context, rows, context);
    std::printf("%-42s %5u %8u %10.2f %9.1f\n", m.name().c_str(), rows, context, 1e3 * t.milliseconds, t.operations / t.milliseconds * 1e-9);
  };
  for (const Model &m : {eight, one}) {
    for (uint32_t context : {512u, 1024u, 2048u, 4096u, 8192u}) prompt(m, 512, context);
    prompt(m, 2048, 8192);
    prompt(m, 128, 8192);
    prompt(m, 32, 8192);
  }
  for (const Model &m : {Model{96, 32, 32}, Model{256, 16, 8}, Model{256, 16, 8, 50.0f, 4096}, Model{128, 28, 4}}) prompt(m, 512, 8192);
}

void test_all(bool quick) {
  const std::vector<uint32_t> lengths = quick ? std::vector<uint32_t>{1, 17, 300} : std::vector<uint32_t>{1, 2, 15, 16, 17, 31, 33, 64, 255, 256, 257, 300, 513, 1000, 2049};
  for (uint32_t length : lengths) {
    const uint32_t rows = std::min(length, 40u);
    test_sequence({128, 8, 2}, length, rows);
    test_sequence({64, 8, 2}, length, rows);
    test_sequence({128, 4, 2, 0.0f, 33}, length, rows);
    test_sequence({256, 4, 2, 30.0f, 100}, length, rows);
  }
  for (uint32_t head_dim : {8u, 16u, 24u, 32u, 40u, 64u, 80u, 96u, 120u, 128u, 256u}) {
    test_sequence({head_dim, 4, 2}, quick ? 90 : 700, 37);
    test_sequence({head_dim, 4, 2, 20.0f, 300}, quick ? 90 : 700, 37);
  }
  for (uint32_t group : {1u, 2u, 3u, 5u, 6u, 7u, 8u, 16u}) test_sequence({64, 2 * group, 2}, quick ? 90 : 530, 50);
  for (const Model &m : {Model{128, 8, 2}, Model{64, 7, 1}, Model{64, 8, 8, 20.0f, 77}, Model{256, 4, 2}}) {
    test_mixed(m);
    test_back_to_back(m);
    test_faults(m);
  }
  test_extremes();
  if (quick) return;
  test_sequence({128, 8, 2}, 8192, 300);
  test_sequence({64, 8, 2}, 20000, 70);
  test_sequence({128, 8, 2}, 33000, 40);
  test_sequence({128, 4, 1, 0.0f, 4096}, 18000, 40);
  test_sequence({128, 8, 8, 50.0f}, 131072, 3);
  // Blocks whose numbers lie beyond 2^31 and 2^32.
  test_sequence({128, 8, 8}, 700, 40, 270000);
}

void test_tiny() {
  test_sequence({128, 4, 1}, 300, 9);
  test_sequence({64, 2, 2, 20.0f, 77}, 140, 9);
}

}  // namespace

int main(int argc, char **argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "tiny") test_tiny();
  if (mode == "quick" || mode.empty()) test_all(mode == "quick");
  std::printf("largest error of attention: %.2e\n", worst_of_all);
  const int failed = report.finish("attention");
  if (mode == "times" || mode.empty()) print_times();
  return failed;
}
