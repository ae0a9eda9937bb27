// Rows sorted by their kinds, as a caller tells them, truly or not.
#pragma once

#include <algorithm>
#include <random>

#include "corpus.hpp"
#include "device.hpp"

// How a caller sorts a batch's rows: not at all; as they are; each as any kind.
enum class Sorted : uint32_t { NOT, TRULY, AT_RANDOM };

enum Kind : uint32_t { BOUNDED, DRAWN, CUT, OTHER, FEW, KINDS };

// `edits_drawn`: the launch for draws takes rows with edits, too.
inline Kind kind_of(const SamplingRow &row, const SamplingProgram &p, bool edits_drawn = false) {
  if (row.flags & NUCLEUS_ROW_PADDING) return row.request % 2 ? DRAWN : BOUNDED;  // where it comes does not matter
  if (row.flags & NUCLEUS_ROW_FEW) return FEW;
  bool edits = row.bias.len | row.bad_words.len | row.eos.len;
  uint32_t i = 0;
  for (; i < p.len; ++i) {
    const uint32_t code = p.ops[i].code;
    const bool by_id = code == NUCLEUS_OP_PENALTIES || code == NUCLEUS_OP_DRY || code == NUCLEUS_OP_NO_REPEAT_NGRAM;
    if (!by_id && code != NUCLEUS_OP_TEMPERATURE && code != NUCLEUS_OP_NONE) break;
    edits |= by_id;
  }
  if (i == p.len) return OTHER;
  const SamplingOp &op = p.ops[i];
  const bool bounds = op.code == NUCLEUS_OP_ARGMAX || op.code == NUCLEUS_OP_MIN_P || (op.code == NUCLEUS_OP_TOP_K && op.threshold <= 128);
  if (bounds && row.flags & NUCLEUS_ROW_PROCESSED) return BOUNDED;
  if (row.flags & NUCLEUS_ROW_ALLOWED) return OTHER;
  if (edits) {
    const bool cut = op.code == NUCLEUS_OP_TOP_P && p.ops[i + 1].code == NUCLEUS_OP_DRAW;
    return edits_drawn && (cut || op.code == NUCLEUS_OP_DRAW) ? CUT : OTHER;
  }
  if (op.code == NUCLEUS_OP_DRAW) return DRAWN;
  if (op.code == NUCLEUS_OP_MIROSTAT_2) return CUT;
  const auto cuts_by_mass = [](uint32_t code) { return code == NUCLEUS_OP_TOP_P || code == NUCLEUS_OP_EPSILON || code == NUCLEUS_OP_TOP_A; };
  if (op.code == NUCLEUS_OP_DYNAMIC_TEMPERATURE || op.code == NUCLEUS_OP_SMOOTHING) {
    const bool cut = op.code == NUCLEUS_OP_DYNAMIC_TEMPERATURE && cuts_by_mass(p.ops[i + 1].code);
    return i + 2 + cut == p.len && p.ops[i + 1 + cut].code == NUCLEUS_OP_DRAW ? CUT : OTHER;
  }
  if (!cuts_by_mass(op.code) && op.code != NUCLEUS_OP_ETA && op.code != NUCLEUS_OP_TYPICAL_P) return OTHER;
  for (i += 1; i < p.len && p.ops[i].code == NUCLEUS_OP_TEMPERATURE;) ++i;
  return i + 1 == p.len && p.ops[i].code == NUCLEUS_OP_DRAW ? CUT : OTHER;
}

// `programs`: by the rows' requests.
inline std::vector<uint32_t> numbers_by_kind(const std::vector<SamplingRow> &rows, const std::vector<SamplingProgram> &programs, Sorted sorted, bool edits_drawn, uint32_t (&of_kind)[KINDS]) {
  std::mt19937 random(static_cast<uint32_t>(rows.size()));
  std::vector<uint32_t> kinds[KINDS], all;
  for (uint32_t r = 0; r < rows.size(); ++r) {
    const Kind kind = kind_of(rows[r], programs[rows[r].request], edits_drawn);
    kinds[sorted == Sorted::AT_RANDOM && !(rows[r].flags & NUCLEUS_ROW_FEW) ? random() % FEW : kind].push_back(r);
  }
  for (uint32_t kind = 0; kind < KINDS; ++kind) {
    if (sorted == Sorted::AT_RANDOM) std::shuffle(kinds[kind].begin(), kinds[kind].end(), random);
    of_kind[kind] = static_cast<uint32_t>(kinds[kind].size());
    all.insert(all.end(), kinds[kind].begin(), kinds[kind].end());
  }
  return all;
}

// What a launch is told of them; the numbers live as long.
struct DeviceOrder {
  uint32_t of_kind[KINDS] = {};
  DeviceArray<uint32_t> numbers;
  SamplingOrder order;

  DeviceOrder(const std::vector<SamplingRow> &rows, const std::vector<SamplingProgram> &programs, Sorted sorted, bool edits_drawn = false)
      : numbers(numbers_by_kind(rows, programs, sorted, edits_drawn, of_kind)), order{numbers.data, of_kind[BOUNDED], of_kind[DRAWN], of_kind[CUT], of_kind[OTHER]} {}
};

// Both ways.
struct DeviceOrders {
  DeviceOrder truly, at_random;

  DeviceOrders(const std::vector<SamplingRow> &rows, const std::vector<SamplingProgram> &programs, bool edits_drawn = false) : truly(rows, programs, Sorted::TRULY, edits_drawn), at_random(rows, programs, Sorted::AT_RANDOM) {}
  SamplingOrder of(Sorted sorted) const { return sorted == Sorted::TRULY ? truly.order : sorted == Sorted::AT_RANDOM ? at_random.order : SamplingOrder{}; }
};
