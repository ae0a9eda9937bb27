// Times of the kernel beside a floor that reads every logit once and takes each row's maximum: medians of CUDA-graph replays, in
// microseconds a batch. Warm: one buffer; cold: buffers rotating over more than 4 times the L2 cache.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "../include/sampling_config.h"
#include "../tests/device.hpp"
#include "../tests/order.hpp"

constexpr uint32_t VOCAB = 151936;

__global__ void read_once(const float *logits, size_t per_row, float *out) {
  const float4 *row = reinterpret_cast<const float4 *>(logits + blockIdx.y * per_row);
  float most = -INFINITY;
  uint32_t count = static_cast<uint32_t>(per_row / 4);
#pragma unroll 8
  for (uint32_t k = 0; k < 8; ++k) {
    uint32_t i = blockIdx.x * 2048 + k * 256 + threadIdx.x;
    if (i < count) {
      float4 v = __ldg(row + i);
      most = fmaxf(most, fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
    }
  }
  for (int step = 16; step; step >>= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  __shared__ float part[8];
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = most;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < 8; ++i) most = fmaxf(most, part[i]);
    out[blockIdx.y * gridDim.x + blockIdx.x] = most;
  }
}

template <class F>
static double median_us(uint32_t launches, F launch) {
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  for (uint32_t i = 0; i < 3; ++i) launch(i, stream);
  CHECK(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  for (uint32_t i = 0; i < launches; ++i) launch(i, stream);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t a, b;
  CHECK(cudaEventCreate(&a));
  CHECK(cudaEventCreate(&b));
  std::vector<float> times;
  for (uint32_t i = 0; i < 13; ++i) {
    CHECK(cudaEventRecord(a, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(b, stream));
    CHECK(cudaStreamSynchronize(stream));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, a, b));
    if (i >= 2) times.push_back(ms * 1000 / launches);
  }
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

static uint64_t mass(double p) { return static_cast<uint64_t>(static_cast<double>(static_cast<float>(p)) * (1.0 - 1.0 / 16777216.0) * 4294967296.0); }

struct Case {
  const char *name;
  SamplingProgram program;
  bool edits, bounded;
  bool raw = false;   // log-probabilities of the row as it came
  bool flat = false;  // logits of deviation 1 without peaks
  uint32_t allowed = 0;  // ids that a mask allows; 0: there is none
  bool told_few = true;  // the caller says so of few
  std::vector<const Case *> others{};  // batches are mixed: a row is like one of these, each as likely
  bool zipf = false;     // ids of histories as often as words are: the n-th in proportion to 1 / n

  bool few() const { return told_few && allowed && allowed <= 4096; }
};

static SamplingProgram program(std::vector<SamplingOp> ops) {
  SamplingProgram p = {};
  for (SamplingOp &op : ops) p.ops[p.len++] = op;
  return p;
}

static Kind kind_of(const Case &c) {
  SamplingRow row = {};
  row.flags = c.raw ? 0 : NUCLEUS_ROW_PROCESSED;
  row.bias.len = c.edits;
  return kind_of(row, c.program);
}

// What a caller says of rows that are drawn from after one cut, by a temperature that follows from them, or smoothed.
static uint32_t what_is_known_of_cut(const SamplingOp *op) {
  switch (op->code) {
    case NUCLEUS_OP_ETA:
    case NUCLEUS_OP_TYPICAL_P: return NUCLEUS_BATCH_CUT_BY_SURPRISE;
    case NUCLEUS_OP_DYNAMIC_TEMPERATURE: return NUCLEUS_BATCH_WARMED | (op[1].code == NUCLEUS_OP_DRAW ? 0 : NUCLEUS_BATCH_CUT_BY_WEIGHT);
    case NUCLEUS_OP_SMOOTHING: return NUCLEUS_BATCH_SMOOTHED;
    case NUCLEUS_OP_MIROSTAT_2: return NUCLEUS_BATCH_CUT_BY_WEIGHT;
    default: return op[1].code != NUCLEUS_OP_DRAW ? NUCLEUS_BATCH_CUT_BY_SURPRISE : op->code == NUCLEUS_OP_TOP_P ? 0 : NUCLEUS_BATCH_CUT_BY_WEIGHT;
  }
}

// Whether an operation edits logits by id, or is a temperature.
static bool is_leading(uint32_t code) {
  return code == NUCLEUS_OP_NONE || code == NUCLEUS_OP_DRY || code == NUCLEUS_OP_NO_REPEAT_NGRAM || code == NUCLEUS_OP_PENALTIES || code == NUCLEUS_OP_TEMPERATURE;
}

// Whether what follows the operation that bounds a row is the commonest.
static bool has_common_chain(const SamplingProgram &p) {
  const SamplingOp *op = p.ops;
  while (is_leading(op->code)) ++op;
  if (op->code == NUCLEUS_OP_ARGMAX) return true;
  for (op += 1; op->code == NUCLEUS_OP_TOP_P || op->code == NUCLEUS_OP_MIN_P;) ++op;
  return op->code == NUCLEUS_OP_DRAW;
}

// Whether the launch for draws may take the rows with edits.
static bool edits(const Case &c) {
  for (const Case *of : c.others)
    if (edits(*of)) return true;
  return c.edits && c.others.empty() && c.program.ops[0].code == NUCLEUS_OP_PENALTIES;
}

static bool draws_edited = true;  // whether callers say that edited rows may be drawn from by the launch for draws

// What a caller says of a batch of such rows.
static uint32_t what_is_known(const Case &c) {
  if (c.few()) return NUCLEUS_BATCH_ALL_FEW;
  if (!c.others.empty()) {
    uint32_t known = ~0u, of_cuts = 0, of_bounded = NUCLEUS_BATCH_ALL_COUNTED | NUCLEUS_BATCH_COMMON_CHAINS, of_others = NUCLEUS_BATCH_NONE_WHOLE | NUCLEUS_BATCH_NONE_SUMMED | NUCLEUS_BATCH_NONE_CUT;
    for (const Case *of : c.others) {
      known &= what_is_known(*of);
      if (kind_of(*of) == BOUNDED) of_bounded &= what_is_known(*of);
      if (kind_of(*of) == OTHER) of_others &= what_is_known(*of);
      of_cuts |= what_is_known(*of) & (NUCLEUS_BATCH_CUT_BY_WEIGHT | NUCLEUS_BATCH_CUT_BY_SURPRISE | NUCLEUS_BATCH_WARMED | NUCLEUS_BATCH_SMOOTHED);
    }
    return of_cuts | (known & (NUCLEUS_BATCH_NO_EDITS | NUCLEUS_BATCH_NONE_BOUNDED)) | of_bounded | of_others;
  }
  const uint32_t unedited = c.edits ? 0 : NUCLEUS_BATCH_NO_EDITS;
  if (!c.bounded) {
    const bool edited = edits(c), drawn = kind_of(c) == DRAWN, by_weight = kind_of(c) == CUT;
    const SamplingOp *op = c.program.ops;
    while (is_leading(op->code)) ++op;
    bool summed = !c.raw;
    for (uint32_t i = 0; i < c.program.len; ++i) {
      const uint32_t code = c.program.ops[i].code;
      summed &= code != NUCLEUS_OP_TOP_K && code != NUCLEUS_OP_TOP_P && code != NUCLEUS_OP_TFS && code != NUCLEUS_OP_ARGMAX;
    }
    const bool whole = op->code == NUCLEUS_OP_TOP_K ? op->threshold <= 96 : op->code == NUCLEUS_OP_DRAW || op->code == NUCLEUS_OP_TOP_P || op->code == NUCLEUS_OP_MIN_P || op->code == NUCLEUS_OP_ARGMAX;
    const bool cut = op->code == NUCLEUS_OP_TOP_K && op->threshold <= 230;
    const uint32_t rest = whole || by_weight ? 0 : NUCLEUS_BATCH_NONE_WHOLE | (summed ? 0 : NUCLEUS_BATCH_NONE_SUMMED | (cut ? 0 : NUCLEUS_BATCH_NONE_CUT));
    return NUCLEUS_BATCH_NONE_BOUNDED | unedited | (drawn ? NUCLEUS_BATCH_ALL_DRAWN : 0) | (drawn || by_weight ? NUCLEUS_BATCH_DRAWN_AFTER_TOP_P : 0) | (by_weight ? what_is_known_of_cut(op) : 0) | rest |
           (edited && draws_edited ? NUCLEUS_BATCH_DRAWN_AFTER_TOP_P | NUCLEUS_BATCH_DRAWN_EDITED : 0);
  }
  const uint32_t bounded = NUCLEUS_BATCH_ALL_BOUNDED | unedited | (has_common_chain(c.program) ? NUCLEUS_BATCH_COMMON_CHAINS : 0);
  for (uint32_t i = 0; i < c.program.len; ++i)
    if (c.program.ops[i].code == NUCLEUS_OP_TOP_K || c.program.ops[i].code == NUCLEUS_OP_ARGMAX) return bounded | NUCLEUS_BATCH_ALL_COUNTED;
  for (uint32_t i = 0; i + 1 < c.program.len; ++i)
    if (c.program.ops[i].code == NUCLEUS_OP_MIN_P && c.program.ops[i + 1].code != NUCLEUS_OP_DRAW) return bounded;
  return bounded | NUCLEUS_BATCH_DRAW_AFTER_MIN_P;
}

// Whether a name contains one of those that `|` lies between.
static bool contains_one(const char *name, const std::string &wanted) {
  for (size_t from = 0;;) {
    const size_t end = std::min(wanted.find('|', from), wanted.size());
    if (std::strstr(name, wanted.substr(from, end - from).c_str())) return true;
    if (end == wanted.size()) return false;
    from = end + 1;
  }
}

constexpr uint32_t LIKELIEST = 20;  // tokens of a row

// What profile.py tells the cases of a launch by.
__global__ void next_case() {}

static void launched(const char *name, const std::function<int()> &launch) {
  next_case<<<1, 1>>>();
  if (int code = launch()) { std::printf("launch %d\n", code); std::exit(1); }
  CHECK(cudaDeviceSynchronize());
  std::printf("case %s\n", name);
}

int main(int argc, char **argv) {
  cudaDeviceProp prop;
  CHECK(cudaGetDeviceProperties(&prop, 0));
  std::printf("%s, %d multiprocessors, L2 %d MiB\n", prop.name, prop.multiProcessorCount, prop.l2CacheSize >> 20);
  SamplingOp temperature{NUCLEUS_OP_TEMPERATURE, 0.7f, 0}, draw{NUCLEUS_OP_DRAW, 0, 0}, top_p{NUCLEUS_OP_TOP_P, 0, mass(0.9)};
  SamplingOp top_k{NUCLEUS_OP_TOP_K, 0, 50}, min_p{NUCLEUS_OP_MIN_P, logf(0.05f), 0};
  SamplingOp dry{NUCLEUS_OP_DRY, 0, 0}, penalties{NUCLEUS_OP_PENALTIES, 0, 0}, sigma{NUCLEUS_OP_TOP_N_SIGMA, 1.5f, 1}, typical{NUCLEUS_OP_TYPICAL_P, 0, mass(0.9)};
  SamplingOp xtc{NUCLEUS_OP_XTC, 0, mass(0.1)}, eta{NUCLEUS_OP_ETA, 0, mass(0.001)}, dynamic{NUCLEUS_OP_DYNAMIC_TEMPERATURE, 0, 0}, smoothing{NUCLEUS_OP_SMOOTHING, 0, 0};
  SamplingOp epsilon{NUCLEUS_OP_EPSILON, 0, mass(0.001)}, mirostat{NUCLEUS_OP_MIROSTAT_2, 0, 0}, tfs{NUCLEUS_OP_TFS, 0, mass(0.95)};
  std::vector<Case> cases = {
      {"all on", program({{NUCLEUS_OP_DRY, 0, 0}, {NUCLEUS_OP_PENALTIES, 0, 0}, temperature, top_k, top_p, min_p, draw}), true, true},
      {"top_k + top_p", program({temperature, top_k, top_p, draw}), false, true},
      {"greedy", program({{NUCLEUS_OP_ARGMAX, 0, 0}}), false, true},
      {"min_p", program({temperature, min_p, draw}), false, true},
      {"T + draw", program({temperature, draw}), false, false},
      {"top_p", program({temperature, top_p, draw}), false, false},
      {"penalties, T, top_p", program({{NUCLEUS_OP_PENALTIES, 0, 0}, temperature, top_p, draw}), true, false},
      {"penalties, T, top_p, Zipf", program({{NUCLEUS_OP_PENALTIES, 0, 0}, temperature, top_p, draw}), true, false, false, false, 0, true, {}, true},
      {"penalties, T + draw", program({{NUCLEUS_OP_PENALTIES, 0, 0}, temperature, draw}), true, false},
      {"T + draw, raw", program({temperature, draw}), false, false, true},
      {"top_k + top_p, raw", program({temperature, top_k, top_p, draw}), false, false, true},
      {"top_p, flat", program({top_p, draw}), false, false, false, true},
      {"min_p, flat", program({min_p, draw}), false, true, false, true},
      {"min_p at .7, flat", program({temperature, min_p, draw}), false, true, false, true},
      {"all on + sigma, typical, XTC", program({dry, penalties, temperature, top_k, sigma, typical, xtc, top_p, min_p, draw}), true, true},
      {"sigma, T, draw", program({sigma, temperature, draw}), false, false},
      {"typical, T, draw", program({typical, temperature, draw}), false, false},
      {"eta, T, draw", program({eta, temperature, draw}), false, false},
      {"top_p, T, draw", program({top_p, temperature, draw}), false, false},
      {"dynamic T, draw", program({dynamic, draw}), false, false},
      {"dynamic T, top_p", program({dynamic, top_p, draw}), false, false},
      {"smoothing, draw", program({smoothing, draw}), false, false},
      {"mirostat 2", program({temperature, mirostat}), false, false},
      {"T, epsilon", program({temperature, epsilon, draw}), false, false},
      {"XTC, T, draw", program({xtc, temperature, draw}), false, false},
      {"top_k 200 + top_p", program({temperature, {NUCLEUS_OP_TOP_K, 0, 200}, top_p, draw}), false, false},
      {"top_k 1000, tfs", program({{NUCLEUS_OP_TOP_K, 0, 1000}, tfs, temperature, draw}), false, false},
      {"min_p, typical, flat", program({min_p, typical, draw}), false, true, false, true},
  };
  const Case all_on = cases[0];
  for (auto [name, allowed] : {std::pair{"all on, 8 ids", 8u}, {"all on, 200 ids", 200u}, {"all on, 4000 ids", 4000u}, {"all on, half", VOCAB / 2}}) {
    cases.push_back(all_on);
    cases.back().name = name;
    cases.back().allowed = allowed;
  }
  for (auto [name, of] : {std::pair{"T + draw, half", "T + draw"}, {"top_p, half", "top_p"}, {"typical, half", "typical, T, draw"}, {"dynamic T, half", "dynamic T, draw"}, {"smoothing, half", "smoothing, draw"}}) {
    const char *const unmasked = of;
    Case masked = *std::find_if(cases.begin(), cases.end(), [&](const Case &c) { return !std::strcmp(c.name, unmasked); });
    masked.name = name;
    masked.allowed = VOCAB / 2;
    cases.push_back(masked);
  }
  const auto named = [&](const char *name) { return &*std::find_if(cases.begin(), cases.end(), [&](const Case &c) { return !std::strcmp(c.name, name); }); };
  // `UNSORTED=1 bench …`: the caller does not say the kinds of these rows.
  // `UNDRAWN=1 bench …`: nor, of any rows, that the launch for draws may edit them.
  std::vector<Case> mixed;
  for (auto [name, of] : {std::pair{"mixed: all on, top_p", std::vector{"all on", "top_p"}}, {"mixed: greedy, T + draw", std::vector{"greedy", "T + draw"}}, {"mixed: top_k + top_p, top_p", std::vector{"top_k + top_p", "top_p"}},
                          {"mixed: all on, top_p, T + draw, penalties", std::vector{"all on", "top_p", "T + draw", "penalties, T, top_p"}}, {"mixed: top_p, T + draw, penalties", std::vector{"top_p", "T + draw", "penalties, T, top_p"}},
                          {"mixed: top_p, penalties", std::vector{"top_p", "penalties, T, top_p"}}, {"mixed: all on, all on, all on, top_p", std::vector{"all on", "all on", "all on", "top_p"}},
                          {"mixed: all on, T + draw, sigma", std::vector{"all on", "T + draw", "sigma, T, draw"}}, {"mixed: all on, penalties", std::vector{"all on", "penalties, T, top_p"}},
                          {"mixed: all on, sigma", std::vector{"all on", "sigma, T, draw"}}, {"mixed: top_p, typical, dynamic T, smoothing", std::vector{"top_p", "typical, T, draw", "dynamic T, draw", "smoothing, draw"}}}) {
    mixed.push_back(Case{name, {}, false, false});
    for (const char *one : of) mixed.back().others.push_back(new Case(*named(one)));
  }
  for (const Case &c : mixed) cases.push_back(c);
  // `bench few [NAME]`: rows of which few ids are allowed, by the kernel for them and by those for masks, in pairs; of cases whose name contains NAME.
  std::vector<std::string> names;
  if (argc > 1 && !std::strcmp(argv[1], "few")) {
    std::vector<Case> whole(cases.begin(), cases.begin() + 6);  // and some that no kernel is for
    for (const Case &c : cases)
      if (!std::strncmp(c.name, "sigma", 5) || !std::strncmp(c.name, "typical", 7) || !std::strncmp(c.name, "mirostat", 8)) whole.push_back(c);
    cases.clear();
    names.reserve(whole.size() * 6);
    for (const Case &of : whole)
      for (uint32_t allowed : {1u, 8u, 60u, 200u, 1000u, 4000u}) {
        names.push_back(std::string(of.name) + ", " + std::to_string(allowed) + " ids");
        for (bool told : {true, false}) {
          Case c = of;
          c.name = names.back().c_str();
          c.allowed = allowed;
          c.told_few = told;
          cases.push_back(c);
        }
      }
  }
  const bool unsorted = getenv("UNSORTED") != nullptr;
  draws_edited = !getenv("UNDRAWN");
  const bool brief = argc > 1 && (!std::strcmp(argv[argc - 1], "brief") || !std::strcmp(argv[1], "few"));  // without the exact path
  bool sweep = argc > 1 && !std::strcmp(argv[1], "clusters");
  // `bench launch ROWS`: every case once on that many rows, for a profiler (profile.py).
  // `bench case NAME`: cases whose name contains NAME, or one of several such as `greedy|min_p`.
  // `bench exact ROWS NAME`: the exact path alone, of cases whose name contains NAME, on that many rows; 0: every batch size.
  const bool exact_alone = argc > 3 && !std::strcmp(argv[1], "exact");
  // `bench portable NAME`: the same cases as on devices without clusters.
  const bool portable = argc > 2 && !std::strcmp(argv[1], "portable");
  const uint32_t always = portable ? NUCLEUS_BATCH_PORTABLE : 0;
  const char *wanted = portable || (argc > 2 && (!std::strcmp(argv[1], "case") || !std::strcmp(argv[1], "few"))) ? argv[2] : exact_alone ? argv[3] : "";
  const uint32_t launch = argc > 2 && !std::strcmp(argv[1], "launch") ? std::atoi(argv[2]) : 0;
  std::vector<uint32_t> sizes{1, 8, 32, 64, 128, 256, 512};
  if (launch) sizes = {launch};
  if (exact_alone && std::atoi(argv[2])) sizes = {static_cast<uint32_t>(std::atoi(argv[2]))};
  for (uint32_t rows : sizes) {
    size_t bytes = static_cast<size_t>(rows) * VOCAB * 4;
    uint32_t copies = rows <= 64 && !exact_alone && !portable ? static_cast<uint32_t>(4ull * prop.l2CacheSize / bytes + 2) : 1;
    std::mt19937 random(rows);  // the same rows whatever the cases are
    std::vector<float> one(static_cast<size_t>(rows) * VOCAB);
    std::vector<float> base(1 << 20);
    std::normal_distribution<float> normal(0, 2);
    for (float &x : base) x = normal(random);
    for (size_t i = 0; i < one.size(); ++i) one[i] = base[(i * 2654435761u + i / VOCAB * 7919) & ((1 << 20) - 1)];
    for (uint32_t r = 0; r < rows; ++r)
      for (int k = 0; k < 20; ++k) one[static_cast<size_t>(r) * VOCAB + random() % VOCAB] += 6 + (random() % 8000) / 1000.0f;
    DeviceArray<float> logits(one.size() * copies);
    for (uint32_t c = 0; c < copies; ++c) CHECK(cudaMemcpy(logits.data + c * one.size(), one.data(), bytes, cudaMemcpyHostToDevice));
    std::vector<uint16_t> halves(one.size());
    const auto round = [&] {
      for (size_t i = 0; i < one.size(); ++i) { uint32_t w; std::memcpy(&w, &one[i], 4); halves[i] = (w + 0x7FFF + (w >> 16 & 1)) >> 16; }
    };
    round();
    DeviceArray<uint16_t> bf16(halves);
    for (size_t i = 0; i < one.size(); ++i) one[i] = 0.5f * base[(i * 2246822519u + i / VOCAB * 104729) & ((1 << 20) - 1)];
    DeviceArray<float> flat(one);
    round();
    DeviceArray<uint16_t> flat_bf16(halves);
    DeviceArray<float> floor_out(static_cast<size_t>(rows) * 32);
    auto floor = [&](uint32_t i, cudaStream_t s) {
      read_once<<<dim3((VOCAB / 4 + 2047) / 2048, rows), 256, 0, s>>>(logits.data + (i % copies) * one.size(), VOCAB, floor_out.data);
    };
    auto floor_warm = [&](uint32_t, cudaStream_t s) { floor(0, s); };
    double floor_us = launch ? 0 : median_us(20, floor_warm), floor_cold = copies > 1 && !launch ? median_us(copies, floor) : floor_us;
    std::printf("rows %4u  floor %8.2f", rows, floor_us);
    if (copies > 1) std::printf("  cold %8.2f", floor_cold);
    std::printf("\n");
    for (Case &c : cases) {
      if (!contains_one(c.name, wanted)) continue;
      std::mt19937 random(rows);
      // A mask a row.
      constexpr uint32_t MASK_WORDS = VOCAB / 32;
      std::vector<uint32_t> masks(c.allowed ? static_cast<size_t>(rows) * MASK_WORDS : 0, 0);
      for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t set = 0; set < c.allowed;) {
          const uint32_t id = random() % VOCAB;
          uint32_t &word = masks[static_cast<size_t>(r) * MASK_WORDS + id / 32];
          set += !(word >> id % 32 & 1);
          word |= 1u << id % 32;
        }
      }
      std::vector<uint32_t> arena;
      std::vector<SamplingRow> row(rows);
      std::vector<SamplingConfig> configs(rows);
      std::vector<SamplingProgram> programs(rows, c.program);
      for (uint32_t r = 0; r < rows; ++r) {
        const Case &like = c.others.empty() ? c : *c.others[random() % c.others.size()];
        programs[r] = like.program;
        SamplingConfig &g = configs[r];
        g = {};
        g.seed = r + 1;
        g.temperature = 0.7f;
        g.repetition_penalty = 1.1f;
        g.frequency_penalty = g.presence_penalty = 0.2f;
        g.repeat_last_n = 1000;
        g.dry_multiplier = 0.8f;
        g.dry_base = 1.75f;
        g.dry_allowed_length = 2;
        g.dry_penalty_last_n = 1024;
        g.dynatemp_range = 0.3f;
        g.dynatemp_exponent = 1.0f;
        g.smoothing_factor = 0.2f;
        g.smoothing_curve = 1.0f;
        g.xtc_probability = 0.5f;
        g.vocab_size = VOCAB;
        row[r] = {};
        row[r].request = r;
        row[r].position = 7;
        row[r].mirostat_mu = 10 << 16;
        row[r].mask = c.allowed ? static_cast<int32_t>(r) : -1;
        row[r].flags = (c.raw ? 0 : NUCLEUS_ROW_PROCESSED) | (c.few() ? NUCLEUS_ROW_FEW : 0) | (launch ? NUCLEUS_ROW_TOP : 0);
        row[r].history = {arena.size(), 1024, 0};
        row[r].prompt_len = 24;
        for (int i = 0; i < 1024; ++i) arena.push_back(like.zipf ? static_cast<uint32_t>(std::pow(VOCAB, random() / 4294967296.0)) - 1 : random() % VOCAB);
        row[r].bias = {arena.size(), like.edits ? 16u : 0u, 0};
        for (uint32_t i = 0; i < 16; ++i) { float value = 1.0f; uint32_t word; std::memcpy(&word, &value, 4); arena.push_back(i * 9001); arena.push_back(word); }
      }
      const DeviceOrder sorted(row, programs, Sorted::TRULY), sorted_edited(row, programs, Sorted::TRULY, true);
      DeviceArray<SamplingRow> d_row(row);
      DeviceArray<SamplingConfig> d_configs(configs);
      DeviceArray<SamplingProgram> d_programs(programs);
      DeviceArray<uint32_t> d_arena(arena), d_masks(masks);
      DeviceArray<SampledToken> out(rows);
      SamplingBatch batch = {};
      batch.struct_size = sizeof(batch);
      batch.rows = rows;
      batch.row_len = VOCAB;
      batch.row_stride = VOCAB;
      batch.row = d_row.data;
      batch.configs = d_configs.data;
      batch.programs = d_programs.data;
      batch.arena = d_arena.data;
      batch.masks = c.allowed ? d_masks.data : nullptr;
      batch.mask_stride = batch.mask_words = MASK_WORDS;
      batch.out = out.data;
      DeviceArray<char> workspace(sampling_workspace_size(rows, 0));
      CHECK(cudaMemset(workspace.data, 0x5A, workspace.count));
      auto run = [&](uint32_t copy, uint32_t cluster, uint32_t dtype, cudaStream_t s, uint32_t flags = 0) {
        SamplingBatch b = batch;
        if (dtype) b.logits = c.flat ? flat_bf16.data : bf16.data;
        else b.logits = c.flat ? flat.data : logits.data + copy * one.size();
        b.dtype = dtype;
        b.cluster = cluster;
        b.flags = always | flags | NUCLEUS_BATCH_REQUEST_EACH | what_is_known(c);
        const bool edited = draws_edited && edits(c);
        if (!c.others.empty() && edited) b.flags |= NUCLEUS_BATCH_DRAWN_EDITED;
        const SamplingOrder order = c.others.empty() || unsorted ? SamplingOrder{} : edited ? sorted_edited.order : sorted.order;
        if (order.order && order.drawn + order.cut == rows) b.flags |= NUCLEUS_BATCH_DRAWN_AFTER_TOP_P;
        if (unsorted && !c.others.empty()) b.flags &= ~(NUCLEUS_BATCH_ALL_COUNTED | NUCLEUS_BATCH_NONE_WHOLE | NUCLEUS_BATCH_NONE_SUMMED | NUCLEUS_BATCH_NONE_CUT);
        int code = launch_sorted_sample_batch(&b, &order, workspace.data, workspace.count, s);
        if (code) { std::printf("launch %d\n", code); std::exit(1); }
      };
      if (launch) {
        batch.logits = logits.data;
        DeviceArray<SamplingLogprob> top(static_cast<size_t>(rows) * LIKELIEST);
        launched(c.name, [&] { run(0, 0, 0, nullptr); return 0; });
        if (&c != &cases[0]) continue;
        launched("likeliest tokens", [&] { return launch_top_logprobs(&batch, LIKELIEST, top.data, nullptr); });
        launched("likeliest tokens, all on", [&] { return launch_top_processed(&batch, LIKELIEST, top.data, workspace.data, workspace.count, nullptr); });
        continue;
      }
      if (exact_alone) {
        std::printf("  %-28s exact %8.2f", c.name, median_us(10, [&](uint32_t, cudaStream_t s) { run(0, 0, 0, s, NUCLEUS_BATCH_EXACT); }));
        std::printf("  without lists %8.2f", median_us(10, [&](uint32_t, cudaStream_t s) { run(0, 0, 0, s, NUCLEUS_BATCH_EXACT | NUCLEUS_BATCH_UNLISTED); }));
        std::printf("  token %u\n", out.host()[0].token_id);
        std::fflush(stdout);
        continue;
      }
      double warm = median_us(10, [&](uint32_t, cudaStream_t s) { run(0, 0, 0, s); });
      double half = median_us(10, [&](uint32_t, cudaStream_t s) { run(0, 0, NUCLEUS_BF16, s); });
      std::printf("  %-20s fp32 %8.2f (%.2f x floor)  bf16 %8.2f", c.name, warm, warm / floor_us, half);
      if (copies > 1 && !c.flat && !portable) std::printf("  cold %8.2f", median_us(copies, [&](uint32_t i, cudaStream_t s) { run(i % copies, 0, 0, s); }));
      if (!brief && !(portable && rows > 1)) std::printf("  exact %8.2f", median_us(10, [&](uint32_t, cudaStream_t s) { run(0, 0, 0, s, NUCLEUS_BATCH_EXACT); }));
      if (sweep)
        for (uint32_t cluster : {4u, 8u}) std::printf("  c%u %.2f", cluster, median_us(10, [&](uint32_t, cudaStream_t s) { run(0, cluster, 0, s); }));
      std::printf("  token %u\n", out.host()[0].token_id);
      std::fflush(stdout);
    }
  }
}
