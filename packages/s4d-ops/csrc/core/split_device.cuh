// Instructions that split products are made of: halves, matrix tiles, copies to shared memory.
//
// With g = lane / 4 and t = lane % 4, a thread of a warp holds of a 16 x 16 left operand the pairs
// of columns 2t and 2t + 8 of rows g and g + 8, of a 16 x 8 right operand the pairs of rows 2t and
// 2t + 8 of column g, and of the 16 x 8 result columns 2t and the next of rows g and g + 8.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace s4d {
namespace split {

__device__ inline uint32_t pack(float first, float second) {
  const __half2 both = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&both);
}

__device__ inline float2 unpack(uint32_t both) {
  return __half22float2(*reinterpret_cast<const __half2*>(&both));
}

// What the lane has whose number differs in these bits.
__device__ inline uint32_t trade(uint32_t mine, int bits) {
  return __shfl_xor_sync(0xffffffffu, mine, bits);
}

// Two values from their high and low parts.
__device__ inline float2 join(uint32_t high, uint32_t low) {
  const float2 h = unpack(high), l = unpack(low);
  return make_float2(h.x + l.x * (1.0f / 2048.0f), h.y + l.y * (1.0f / 2048.0f));
}

// The parts of a group of 8 values.
__device__ inline void group_parts(const float (&value)[8], uint4* high, uint4* low) {
  uint32_t h[4], l[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    h[i] = pack(value[2 * i], value[2 * i + 1]);
    const float2 near = unpack(h[i]);
    l[i] = pack((value[2 * i] - near.x) * 2048.0f, (value[2 * i + 1] - near.y) * 2048.0f);
  }
  *high = make_uint4(h[0], h[1], h[2], h[3]);
  *low = make_uint4(l[0], l[1], l[2], l[3]);
}

// Word i of lane t of every four lanes becomes word t of lane i.
__device__ inline void turn(uint32_t (&word)[4], int t) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = trade(t & 1 ? word[i] : word[i + 1], 1);
    (t & 1 ? word[i] : word[i + 1]) = other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = trade(t & 2 ? word[i] : word[i + 2], 2);
    (t & 2 ? word[i] : word[i + 2]) = other;
  }
}

// Two halves times 2^-11.
__device__ inline uint32_t shrink(uint32_t both) {
  const __half2 scaled =
      __hmul2(*reinterpret_cast<const __half2*>(&both), __float2half2_rn(1.0f / 2048.0f));
  return *reinterpret_cast<const uint32_t*>(&scaled);
}

__device__ inline uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define S4D_SPLIT_PRODUCTS  // the device has what follows

// Four 8 x 8 tiles of halves; lane i names row i % 8 of tile i / 8.
__device__ inline void load_tiles(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// sum += a * b
__device__ inline void multiply(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes to shared memory in the background; zeros, without reading, where `there` is false.
__device__ inline void copy_16(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(to), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most kPending groups of this thread's copies are under way.
template <int kPending>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#endif

}  // namespace split
}  // namespace s4d
