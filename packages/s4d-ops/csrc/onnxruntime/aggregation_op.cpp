#include "aggregation_op.h"

#include <array>
#include <deque>
#include <exception>
#include <mutex>

namespace s4d_ort {
namespace {

constexpr std::size_t kInputs = 5;
using Types = std::array<ElementType, kInputs>;

// One operator of one name, provider and combination of types. The runtime merges operators of
// one name into one schema and picks the kernel by the types of the node.
struct AggregationOp : CustomOp {
  const char* op_name;
  Provider provider;
  Types types;
};

const AggregationOp& self(const CustomOp* op) { return *static_cast<const AggregationOp*>(op); }

s4d::DType dtype_of(ElementType type) {
  switch (type) {
    case kDouble: return s4d::DType::f64;
    case kFloat16: return s4d::DType::f16;
    case kBFloat16: return s4d::DType::bf16;
    case kInt32: return s4d::DType::i32;
    case kInt64: return s4d::DType::i64;
    case kInt8: return s4d::DType::i8;
    default: return s4d::DType::f32;
  }
}

// Carries a status of the runtime up to the place that hands it back.
struct Failed {
  OrtStatus* status;
};

void check(OrtStatus* status) {
  if (status) throw Failed{status};
}

struct Input {
  const void* data = nullptr;
  std::vector<int64_t> sizes;
  s4d::DType type = s4d::DType::f32;

  s4d::TensorShape shape() const {
    return {sizes.data(), static_cast<int64_t>(sizes.size()), type};
  }
};

struct Kernel {
  Api api;
  Provider provider;

  Input read(OrtKernelContext* context, std::size_t index) const {
    const OrtValue* value = nullptr;
    check(api.input(context, index, &value));
    if (!value) {
      throw Failed{api.create_status(kInvalidArgument,
                                     "DeformableAggregation: all five inputs are required")};
    }
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api.type_and_shape(value, &info));
    Input input;
    ElementType type = kUndefined;
    std::size_t rank = 0;
    OrtStatus* status = api.element_type(info, &type);
    if (!status) status = api.rank(info, &rank);
    if (!status) {
      input.sizes.resize(rank);
      status = api.sizes(info, input.sizes.data(), rank);
    }
    api.release(info);
    check(status);
    input.type = dtype_of(type);
    void* data = nullptr;
    check(api.data(value, &data));
    input.data = data;
    return input;
  }

  void compute(OrtKernelContext* context) const {
    std::array<Input, kInputs> in;
    for (std::size_t i = 0; i < kInputs; ++i) in[i] = read(context, i);
    AggregationCall call{api, context, {}};
    s4d::AggregationForward& args = call.args;
    std::string problem = s4d::check_aggregation(in[0].shape(), in[1].shape(), in[2].shape(),
                                                 in[3].shape(), in[4].shape(), &args.shape);
    if (!problem.empty()) throw Failed{api.create_status(kInvalidArgument, problem.c_str())};
    const int64_t sizes[] = {args.shape.batch, args.shape.anchors, args.shape.channels};
    OrtValue* output = nullptr;
    check(api.output(context, 0, sizes, 3, &output));
    check(api.data(output, &args.output));
    args.feature_type = args.output_type = in[0].type;
    args.index_type = in[1].type;
    args.location_type = in[3].type;
    args.weight_type = in[4].type;
    args.features = in[0].data;
    args.spatial_shapes = in[1].data;
    args.level_start_index = in[2].data;
    args.locations = in[3].data;
    args.weights = in[4].data;
    problem = provider.run(call);
    if (!problem.empty()) throw Failed{api.create_status(kInvalidArgument, problem.c_str())};
  }
};

// No exception crosses the C interface.
template <class Work>
OrtStatus* guarded(const Api& api, const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::exception& error) {
    return api.create_status(kFail, error.what());
  } catch (...) {
    return api.create_status(kFail, "DeformableAggregation: unknown error");
  }
}

OrtStatus* create_kernel_v2(const CustomOp* op, const OrtApi* table, const OrtKernelInfo*,
                            void** out) {
  const Api api(table);
  return guarded(api, [&] { *out = new Kernel{api, self(op).provider}; });
}

OrtStatus* compute_v2(void* kernel, OrtKernelContext* context) {
  const Kernel& k = *static_cast<const Kernel*>(kernel);
  return guarded(k.api, [&] { k.compute(context); });
}

AggregationOp make_op(const char* name, const Provider& provider, const Types& types) {
  AggregationOp op{};
  op.version = kCustomOpVersion;
  op.op_name = name;
  op.provider = provider;
  op.types = types;
  op.GetName = [](const CustomOp* o) { return self(o).op_name; };
  op.GetExecutionProviderType = [](const CustomOp* o) { return self(o).provider.name; };
  op.GetInputType = [](const CustomOp* o, std::size_t i) { return self(o).types[i]; };
  op.GetInputTypeCount = [](const CustomOp*) { return kInputs; };
  op.GetOutputType = [](const CustomOp* o, std::size_t) { return self(o).types[0]; };
  op.GetOutputTypeCount = [](const CustomOp*) -> std::size_t { return 1; };
  op.GetInputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  op.GetOutputCharacteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, std::size_t) { return kDefaultMemory; };
  op.GetVariadicInputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const CustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const CustomOp*) { return 1; };
  op.CreateKernelV2 = &create_kernel_v2;
  op.KernelComputeV2 = &compute_v2;
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

std::vector<Types> type_table() {
  std::vector<Types> table;
  for (const ElementType index : {kInt32, kInt64}) {
    table.push_back({kFloat, index, index, kFloat, kFloat});
    table.push_back({kDouble, index, index, kDouble, kDouble});
    for (const ElementType half : {kFloat16, kBFloat16}) {
      for (const ElementType location : {kFloat, half}) {
        for (const ElementType weight : {kFloat, half}) {
          table.push_back({half, index, index, location, weight});
        }
      }
    }
  }
  return table;
}

// Domains live as long as the process: sessions refer to them, and a session may outlive the
// options that it was made with. Every session gets the same ones.
struct Domains {
  std::deque<AggregationOp> ops;
  std::vector<OrtCustomOpDomain*> domains;
};

OrtStatus* make_domains(const Api& api, const std::vector<Provider>& providers, Domains* out) {
  const char* const names[][2] = {{"s4d", "DeformableAggregation"},
                                  {"custom", "DeformableAttentionAggrPlugin"}};
  for (const auto& [domain_name, op_name] : names) {
    OrtCustomOpDomain* domain = nullptr;
    if (OrtStatus* status = api.create_domain(domain_name, &domain)) return status;
    for (const Provider& provider : providers) {
      for (const Types& types : type_table()) {
        out->ops.push_back(make_op(op_name, provider, types));
        if (OrtStatus* status = api.add_op(domain, &out->ops.back())) return status;
      }
    }
    out->domains.push_back(domain);
  }
  return nullptr;
}

}  // namespace

OrtStatus* register_aggregation(OrtSessionOptions* options, const OrtApiBase* base,
                                const std::vector<Provider>& providers) {
  const OrtApi* table = base->GetApi(kApiVersion);
  if (!table) {
    // Every release has the first interface, and with it CreateStatus.
    return Api(base->GetApi(1)).create_status(
        kFail, "s4d: ONNX Runtime 1.17 or later is needed for the s4d operators");
  }
  const Api api(table);
  OrtStatus* result = nullptr;
  OrtStatus* const unexpected = guarded(api, [&] {
    static std::mutex mutex;
    static Domains* made = nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!made) {
      auto* fresh = new Domains;
      result = make_domains(api, providers, fresh);
      if (result) return;  // the half-made domains are left behind; this happens once
      made = fresh;
    }
    for (OrtCustomOpDomain* domain : made->domains) {
      result = api.add_domain(options, domain);
      if (result) return;
    }
  });
  return unexpected ? unexpected : result;
}

}  // namespace s4d_ort
