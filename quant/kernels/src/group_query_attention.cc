// The operator GroupQueryAttention of the domain "phirt.kernels", for onnxruntime on the CPU: what com.microsoft's
// operator of this name computes with float32 queries, from the same inputs and attributes; without soft caps,
// sinks, biases, interleaved rotation and caches of 4 bits. Keys and values are kept in float32, float16 or int8.
//
// Knows onnxruntime's C interface. Past and present may be one buffer, in which new positions are written in their
// place. Work is shared out on the session's own threads.
#include "group_query_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention.h"
#include "operator_table.h"
#include "ort_api.h"

namespace phirt {

namespace {

enum Input : size_t {
  kQuery, kKey, kValue, kPastKey, kPastValue, kLengths, kTotal, kCosines, kSines, kPositions, kBias, kSinks,
  kKeyScales, kValueScales, kInputs
};
enum Output : size_t { kOut, kPresentKey, kPresentValue, kOutputs };

// Rows that one piece of work appends to the cache.
constexpr int64_t kAppended = 16;
constexpr int64_t kMostHeads = 1 << 16;

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("GroupQueryAttention: ") + what);
}

class GroupQueryAttention {
 public:
  GroupQueryAttention(const OrtApi* ort, const OrtKernelInfo* info) : api_{ort}, kernels_(best_attention()) {
    heads_ = api_.attribute(info, "num_heads", int64_t{0});
    kv_heads_ = api_.attribute(info, "kv_num_heads", int64_t{0});
    require(kv_heads_ > 0 && heads_ <= kMostHeads, "numbers of heads that are not supported");
    require(heads_ > 0 && heads_ % kv_heads_ == 0, "num_heads is no multiple of kv_num_heads");
    for (const char* name : {"rotary_interleaved", "smooth_softmax"}) {
      require(api_.attribute(info, name, int64_t{0}) <= 0, "an attribute that is not supported");
    }
    require(api_.attribute(info, "softcap", 0.0f) == 0.0f, "softcap is not supported");
    scale_ = api_.attribute(info, "scale", 0.0f);
    window_ = std::max<int64_t>(api_.attribute(info, "local_window_size", int64_t{-1}), 0);
    rotates_ = api_.attribute(info, "do_rotary", int64_t{0}) == 1;
  }

  void compute(OrtKernelContext* context) const {
    const std::vector<const OrtValue*> given = api_.inputs(context, kInputs);
    const OrtValue* const* inputs = given.data();
    for (const Input needed : {kQuery, kPastKey, kPastValue, kLengths, kTotal}) {
      require(inputs[needed] != nullptr, "an input is missing");
    }
    require(inputs[kBias] == nullptr && inputs[kSinks] == nullptr, "biases and sinks are not supported");
    Call call;
    take_sizes(inputs, call);
    take_outputs(context, inputs, call);
    take_scales(inputs, call);
    for (int64_t batch = 0; batch < call.batches; ++batch) {
      take_batch(inputs, batch, call);
      if (call.attention.rows > 0) attend(context, call.attention);
    }
  }

 private:
  struct Call {
    Attention attention{};
    int64_t batches = 0, total = 0, past_capacity = 0, element = 0;
    const uint8_t *past_keys = nullptr, *past_values = nullptr;
    uint8_t *keys = nullptr, *values = nullptr;
    float* out = nullptr;
    std::vector<float> scales;
    std::vector<int64_t> table_rows;
    int64_t table_length = 0;
  };

  void take_sizes(const OrtValue* const* inputs, Call& call) const {
    const std::vector<int64_t> query = api_.shape(inputs[kQuery]), past = api_.shape(inputs[kPastKey]);
    require(query.size() == 3 && past.size() == 4, "queries have three dimensions, past keys four");
    require(past[0] == query[0] && past[1] == kv_heads_ && past == api_.shape(inputs[kPastValue]),
            "past keys and values are no [batch, kv_num_heads, positions, head_size]");
    Attention& a = call.attention;
    call.batches = query[0];
    a.heads = heads_, a.kv_heads = kv_heads_, a.head_dim = past[3], a.window = window_, a.rows = query[1];
    require(a.head_dim > 0 && a.head_dim % 8 == 0 && a.head_dim <= kMostHeadDim, "a head_size that is not supported");
    a.scale = scale_ != 0.0f ? scale_ : 1.0f / std::sqrt(static_cast<float>(a.head_dim));
    const bool packed = inputs[kKey] == nullptr;
    a.query_stride = (heads_ + (packed ? 2 * kv_heads_ : 0)) * a.head_dim;
    a.key_stride = packed ? a.query_stride : kv_heads_ * a.head_dim;
    require(query[2] == a.query_stride, "queries have not the size that the numbers of heads say");
    if (!packed) {
      const std::vector<int64_t> expected{query[0], query[1], a.key_stride};
      require(inputs[kValue] != nullptr && api_.shape(inputs[kKey]) == expected &&
                  api_.shape(inputs[kValue]) == expected,
              "keys and values have not the size of the queries");
    }
    call.past_capacity = past[2];
    require(elements(api_.shape(inputs[kTotal])) == 1, "total_sequence_length is no single number");
    call.total = *api_.data<int32_t>(inputs[kTotal]);
    require(elements(api_.shape(inputs[kLengths])) == call.batches, "seqlens_k has not one length for each sequence");
    if (rotates_) {
      require(inputs[kCosines] != nullptr && inputs[kSines] != nullptr, "do_rotary without tables");
      const std::vector<int64_t> table = api_.shape(inputs[kCosines]);
      require(table.size() == 2 && 2 * table[1] <= a.head_dim && table == api_.shape(inputs[kSines]),
              "tables are no [positions, at most head_size / 2]");
      a.pairs = table[1], call.table_length = table[0];
      a.cosines = api_.data<float>(inputs[kCosines]), a.sines = api_.data<float>(inputs[kSines]);
      require(inputs[kPositions] == nullptr || elements(api_.shape(inputs[kPositions])) == call.batches * a.rows,
              "position_ids have not the size of the queries");
    }
  }

  void take_outputs(OrtKernelContext* context, const OrtValue* const* inputs, Call& call) const {
    Attention& a = call.attention;
    switch (api_.type(inputs[kPastKey])) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
        a.type = CacheType::kFloat, call.element = 4;
        break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        a.type = CacheType::kHalf, call.element = 2;
        break;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
        a.type = CacheType::kInt8, call.element = 1;
        break;
      default:
        require(false, "keys and values are neither float32, float16 nor int8");
    }
    require(api_.type(inputs[kPastKey]) == api_.type(inputs[kPastValue]), "keys and values differ in type");
    a.capacity = std::max(call.past_capacity, call.total);
    const int64_t present[] = {call.batches, kv_heads_, a.capacity, a.head_dim};
    const int64_t out[] = {call.batches, a.rows, heads_ * a.head_dim};
    OrtValue* outputs[kOutputs] = {};
    api_.check(api_.ort->KernelContext_GetOutput(context, kOut, out, 3, &outputs[kOut]));
    api_.check(api_.ort->KernelContext_GetOutput(context, kPresentKey, present, 4, &outputs[kPresentKey]));
    api_.check(api_.ort->KernelContext_GetOutput(context, kPresentValue, present, 4, &outputs[kPresentValue]));
    require(outputs[kPresentKey] != nullptr && outputs[kPresentValue] != nullptr, "present outputs are missing");
    call.out = static_cast<float*>(api_.memory(outputs[kOut]));
    call.past_keys = api_.data<uint8_t>(inputs[kPastKey]);
    call.past_values = api_.data<uint8_t>(inputs[kPastValue]);
    call.keys = static_cast<uint8_t*>(api_.memory(outputs[kPresentKey]));
    call.values = static_cast<uint8_t*>(api_.memory(outputs[kPresentValue]));
  }

  // Scales and their inverses of keys, then of values, one for each channel.
  void take_scales(const OrtValue* const* inputs, Call& call) const {
    Attention& a = call.attention;
    if (a.type != CacheType::kInt8) return;
    const int64_t channels = kv_heads_ * a.head_dim;
    call.scales.resize(static_cast<size_t>(4 * channels));
    float* free = call.scales.data();
    for (const Input input : {kKeyScales, kValueScales}) {
      require(inputs[input] != nullptr, "a cache of int8 without scales");
      const int64_t count = elements(api_.shape(inputs[input]));
      require(count == 1 || count == channels, "scales are neither one nor one for each channel");
      const float* scales = api_.data<float>(inputs[input]);
      for (int64_t i = 0; i < channels; ++i) {
        free[i] = scales[count == 1 ? 0 : i];
        free[channels + i] = 1.0f / free[i];
      }
      free += 2 * channels;
    }
    a.key_scales = call.scales.data(), a.key_inverses = a.key_scales + channels;
    a.value_scales = a.key_scales + 2 * channels, a.value_inverses = a.key_scales + 3 * channels;
  }

  void take_batch(const OrtValue* const* inputs, int64_t batch, Call& call) const {
    Attention& a = call.attention;
    const int64_t length = int64_t{api_.data<int32_t>(inputs[kLengths])[batch]} + 1;
    const bool first = a.rows == call.total;  // of a sequence: it may be padded behind its end
    a.past = first ? 0 : length - a.rows;
    require(a.past >= 0 && a.past + a.rows <= a.capacity && (a.past <= call.past_capacity),
            "seqlens_k and total_sequence_length do not fit the past keys");
    const bool packed = inputs[kKey] == nullptr;
    const float* query = api_.data<float>(inputs[kQuery]) + batch * a.rows * a.query_stride;
    a.queries = query;
    const int64_t from = batch * a.rows * a.key_stride;
    a.keys = packed ? query + heads_ * a.head_dim : api_.data<float>(inputs[kKey]) + from;
    a.values = packed ? a.keys + kv_heads_ * a.head_dim : api_.data<float>(inputs[kValue]) + from;
    const int64_t head_bytes = a.capacity * a.head_dim * call.element;
    a.key_cache = call.keys + batch * kv_heads_ * head_bytes;
    a.value_cache = call.values + batch * kv_heads_ * head_bytes;
    a.out = call.out + batch * a.rows * heads_ * a.head_dim;
    take_past(call.past_keys, call.keys, batch, call);
    take_past(call.past_values, call.values, batch, call);
    if (a.pairs > 0) take_table_rows(inputs[kPositions], batch, first, call);
  }

  // Where past and present are not one buffer, present begins with the past and ends with zeros.
  void take_past(const uint8_t* past, uint8_t* present, int64_t batch, const Call& call) const {
    if (past == present) return;
    const Attention& a = call.attention;
    const int64_t row = a.head_dim * call.element;
    for (int64_t head = batch * kv_heads_; head < (batch + 1) * kv_heads_; ++head) {
      uint8_t* to = present + head * a.capacity * row;
      std::memcpy(to, past + head * call.past_capacity * row, static_cast<size_t>(a.past * row));
      std::memset(to + a.past * row, 0, static_cast<size_t>((a.capacity - a.past) * row));
    }
  }

  // A sequence's first rows count on from the first of the given positions.
  void take_table_rows(const OrtValue* positions, int64_t batch, bool first, Call& call) const {
    Attention& a = call.attention;
    const int64_t* given = positions != nullptr ? api_.data<int64_t>(positions) + batch * a.rows : nullptr;
    call.table_rows.resize(static_cast<size_t>(a.rows));
    for (int64_t row = 0; row < a.rows; ++row) {
      const int64_t place = given == nullptr ? a.past + row : first ? given[0] + row : given[row];
      require(place >= 0 && place < call.table_length, "a position that the tables do not have");
      call.table_rows[static_cast<size_t>(row)] = place;
    }
    a.table_rows = call.table_rows.data();
  }

  struct Work {
    const AttentionKernels* kernels;
    const Attention* attention;
    Pieces pieces;
    std::atomic<int64_t>* left;  // pieces of each key and value head
    int64_t queries, tiles;      // of a tile, of a key and value head
    std::atomic<bool> lacks_memory{false};
  };

  void attend(OrtKernelContext* context, const Attention& a) const {
    Work work{&kernels_, &a, {}, nullptr, 0, 0, {}};
    share_out(context, append, (a.rows + kAppended - 1) / kAppended, work);
    if (a.queries_of_head() <= kFewQueries && a.head_dim % kernels_.lanes == 0) return attend_few(context, work);
    work.queries = kTileQueries;
    work.tiles = (a.queries_of_head() + work.queries - 1) / work.queries;
    share_out(context, tile, work.tiles * kv_heads_, work);
    if (work.lacks_memory) throw std::bad_alloc();
  }

  void attend_few(OrtKernelContext* context, Work& work) const {
    const Attention& a = *work.attention;
    Pieces& pieces = work.pieces = cut_positions(a);
    const int64_t parts = pieces.count * kv_heads_ * a.queries_of_head();
    const size_t counters = static_cast<size_t>(kv_heads_) * sizeof(std::atomic<int64_t>);
    uint8_t* memory = scratch<Purpose::kPieces>(counters + static_cast<size_t>(parts * (a.head_dim + 2)) * sizeof(float));
    work.left = reinterpret_cast<std::atomic<int64_t>*>(memory);
    pieces.sums = reinterpret_cast<float*>(memory + counters);
    pieces.maxima = pieces.sums + parts * a.head_dim;
    pieces.weights = pieces.maxima + parts;
    for (int64_t i = 0; i < kv_heads_; ++i) new (&work.left[i]) std::atomic<int64_t>(pieces.count);
    share_out(context, piece, pieces.count * kv_heads_, work);
  }

  void share_out(OrtKernelContext* context, void (*step)(void*, size_t), int64_t count, Work& work) const {
    if (count == 1) return step(&work, 0);
    api_.check(api_.ort->KernelContext_ParallelFor(context, step, static_cast<size_t>(count), 0, &work));
  }

  static void append(void* data, size_t index) {
    const Work& work = *static_cast<const Work*>(data);
    const int64_t first = static_cast<int64_t>(index) * kAppended;
    work.kernels->append(*work.attention, first, std::min(first + kAppended, work.attention->rows));
  }

  // Whoever computes the last piece of a head puts its pieces together, in their order.
  static void piece(void* data, size_t index) {
    const Work& work = *static_cast<const Work*>(data);
    const int64_t head = static_cast<int64_t>(index) / work.pieces.count;
    work.kernels->piece(*work.attention, work.pieces, head, static_cast<int64_t>(index) % work.pieces.count);
    if (work.left[head].fetch_sub(1, std::memory_order_acq_rel) == 1) {
      work.kernels->combine(*work.attention, work.pieces, head);
    }
  }

  // Those of a head follow each other, so that its keys and values stay near; the last rows, which see most,
  // come first.
  static void tile(void* data, size_t index) {
    Work& work = *static_cast<Work*>(data);
    const Attention& a = *work.attention;
    const int64_t number = static_cast<int64_t>(index), head = number / work.tiles;
    const int64_t first = (work.tiles - 1 - number % work.tiles) * work.queries;
    const int64_t last = std::min(first + work.queries, a.queries_of_head());
    try {
      work.kernels->tile(a, head, first, last, scratch<Purpose::kTile>(tile_bytes(a.head_dim)));
    } catch (const std::bad_alloc&) {  // which may not leave a thread of onnxruntime's
      work.lacks_memory = true;
    }
  }

  Api api_;
  const AttentionKernels& kernels_;
  int64_t heads_ = 0, kv_heads_ = 0, window_ = 0;
  float scale_ = 0.0f;
  bool rotates_ = false;
};

// A cache's type is known from its input alone; outputs have it too.
ONNXTensorElementDataType input_type(const OrtCustomOp*, size_t index) {
  switch (index) {
    case kPastKey:
    case kPastValue:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    case kLengths:
    case kTotal:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case kPositions:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

OrtCustomOpInputOutputCharacteristic input_characteristic(const OrtCustomOp*, size_t index) {
  const bool required = index == kQuery || (index >= kPastKey && index <= kTotal);
  return required ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
}

struct Operator : OrtCustomOp {
  const OrtApi* ort;
};

// Keys and values have their past's type and sizes, but for the number of positions, which may grow: a name.
void infer_present(const Api& api, OrtShapeInferContext* context, size_t past, size_t present) {
  OrtTensorTypeAndShapeInfo *known = nullptr, *inferred = nullptr;
  api.check(api.ort->ShapeInferContext_GetInputTypeShape(context, past, &known));
  ONNXTensorElementDataType type;
  api.check(api.ort->GetTensorElementType(known, &type));
  size_t count = 0;
  api.check(api.ort->GetDimensionsCount(known, &count));
  if (count != 4) return;  // of unknown rank: so is what becomes of it
  std::vector<int64_t> dims(count);
  std::vector<const char*> names(count);
  api.check(api.ort->GetDimensions(known, dims.data(), count));
  api.check(api.ort->GetSymbolicDimensions(known, names.data(), count));
  for (size_t i = 0; i < count; ++i) {
    if (i == 2) dims[i] = -1, names[i] = "present_positions";
    else if (dims[i] < 0 && *names[i] == '\0') names[i] = "unknown";
  }
  api.check(api.ort->CreateTensorTypeAndShapeInfo(&inferred));
  OrtStatus* status = api.ort->SetTensorElementType(inferred, type);
  if (status == nullptr) status = api.ort->SetDimensions(inferred, dims.data(), count);
  if (status == nullptr) status = api.ort->SetSymbolicDimensions(inferred, names.data(), count);
  if (status == nullptr) status = api.ort->ShapeInferContext_SetOutputTypeShape(context, present, inferred);
  api.ort->ReleaseTensorTypeAndShapeInfo(inferred);
  api.check(status);
}

OrtStatus* infer(const OrtCustomOp* op, OrtShapeInferContext* context) {
  const Api api{static_cast<const Operator*>(op)->ort};
  try {
    infer_present(api, context, kPastKey, kPresentKey);
    infer_present(api, context, kPastValue, kPresentValue);
    return nullptr;
  } catch (const std::exception& error) {
    return api.ort->CreateStatus(ORT_FAIL, error.what());
  }
}

Operator describe(const OrtApi* ort) {
  Operator op{};
  op.ort = ort;
  fill_table<GroupQueryAttention>(op);
  op.GetName = [](const OrtCustomOp*) { return "GroupQueryAttention"; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
  op.GetInputType = input_type;
  op.GetInputCharacteristic = input_characteristic;
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return kOutputs; };
  op.GetOutputType = [](const OrtCustomOp*, size_t index) {
    return index == kOut ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  };
  op.InferOutputShapeFn = infer;
  return op;
}

}  // namespace

const OrtCustomOp* group_query_attention(const OrtApi* ort) {
  static const Operator op = describe(ort);
  return &op;
}

}  // namespace phirt
