// Element types and tensor descriptions that every door hands to the core.
#pragma once

#include <cstddef>
#include <cstdint>

namespace s4d {

enum class DType : int32_t { f32 = 0, f64 = 1, f16 = 2, bf16 = 3, i8 = 4, i32 = 5, i64 = 6 };

inline const char* name(DType type) {
  switch (type) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::f16: return "float16";
    case DType::bf16: return "bfloat16";
    case DType::i8: return "int8";
    case DType::i32: return "int32";
    case DType::i64: return "int64";
  }
  return "unknown";
}

inline std::size_t size_of(DType type) {
  switch (type) {
    case DType::f64:
    case DType::i64: return 8;
    case DType::f32:
    case DType::i32: return 4;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::i8: return 1;
  }
  return 0;
}

// Shape of a contiguous tensor, as a door sees it. `sizes` is borrowed.
struct TensorShape {
  const int64_t* sizes = nullptr;
  int64_t rank = 0;
  DType type = DType::f32;
};

}  // namespace s4d
