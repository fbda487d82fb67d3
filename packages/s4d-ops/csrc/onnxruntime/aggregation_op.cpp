#include "aggregation_op.h"

#include <array>
#include <deque>
#include <mutex>

#include "kernel_support.h"

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

struct Kernel {
  Api api;
  Provider provider;

  void compute(OrtKernelContext* context) const {
    std::array<TensorInput, kInputs> in;
    std::array<s4d::TensorShape, kInputs> shapes;
    for (std::size_t i = 0; i < kInputs; ++i) {
      in[i] = read_input(api, context, i, "DeformableAggregation: all five inputs are required");
      shapes[i] = {in[i].sizes.data(), static_cast<int64_t>(in[i].sizes.size()),
                   dtype_of(in[i].type)};
    }
    AggregationCall call{api, context, {}};
    s4d::AggregationForward& args = call.args;
    std::string problem = s4d::check_aggregation(shapes[0], shapes[1], shapes[2], shapes[3],
                                                 shapes[4], &args.shape);
    if (!problem.empty()) throw Failed{api.create_status(kInvalidArgument, problem.c_str())};
    const int64_t sizes[] = {args.shape.batch, args.shape.anchors, args.shape.channels};
    OrtValue* output = nullptr;
    check(api.output(context, 0, sizes, 3, &output));
    check(api.data(output, &args.output));
    args.feature_type = args.output_type = shapes[0].type;
    args.index_type = shapes[1].type;
    args.location_type = shapes[3].type;
    args.weight_type = shapes[4].type;
    args.features = in[0].data;
    args.spatial_shapes = in[1].data;
    args.level_start_index = in[2].data;
    args.locations = in[3].data;
    args.weights = in[4].data;
    problem = provider.run(call);
    if (!problem.empty()) throw Failed{api.create_status(kInvalidArgument, problem.c_str())};
  }
};

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
  AggregationOp op{plain_op(), name, provider, types};
  op.GetName = [](const CustomOp* o) { return self(o).op_name; };
  op.GetExecutionProviderType = [](const CustomOp* o) { return self(o).provider.name; };
  op.GetInputType = [](const CustomOp* o, std::size_t i) { return self(o).types[i]; };
  op.GetInputTypeCount = [](const CustomOp*) { return kInputs; };
  op.GetOutputType = [](const CustomOp* o, std::size_t) { return self(o).types[0]; };
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
