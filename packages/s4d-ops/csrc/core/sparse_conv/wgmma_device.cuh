// Products of a warpgroup on Hopper: m64nNk16 of halves and m64nNk32 of codes, weights in registers,
// rows in shared memory; how the rows lie there; 16-byte reads. For code of sm_90a alone.
#pragma once

#include <cstdint>

namespace s4d::sparse::cuda {

constexpr int kSpan = 128;  // bytes of a row in shared memory; a longer row lies in several such

#define S4D_8(x, i) x(acc[i]), x(acc[i + 1]), x(acc[i + 2]), x(acc[i + 3]), x(acc[i + 4]), \
                    x(acc[i + 5]), x(acc[i + 6]), x(acc[i + 7])
#define S4D_40(x) S4D_8(x, 0), S4D_8(x, 8), S4D_8(x, 16), S4D_8(x, 24), S4D_8(x, 32)
#define S4D_64(x) S4D_40(x), S4D_8(x, 40), S4D_8(x, 48), S4D_8(x, 56)
#define S4D_LIST_40 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20," \
                    "%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39"
#define S4D_LIST_64 S4D_LIST_40 ",%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54," \
                    "%55,%56,%57,%58,%59,%60,%61,%62,%63"

// acc += a * b: a, 64 channels by 32 bytes of depth, in registers as in mma_device.cuh; b, the rows,
// described by `at`. A thread gets, of channels g and g + 8 of its warp's 16 and of every 8 rows,
// rows 2 * quad and the next.
#define S4D_PRODUCT(rows, number, list, all, a0, a1, a2, a3, at_)                                 \
  __device__ inline void group_multiply(float (&acc)[number], const uint32_t (&a)[4],             \
                                        uint64_t at) {                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" rows "k16.f32.f16.f16 {" list "}, {" a0 ","  \
                 a1 "," a2 "," a3 "}, " at_ ", 1, 1, 1, 0;"                                       \
                 : all("+f") : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(at));              \
  }                                                                                               \
  __device__ inline void group_multiply(int (&acc)[number], const uint32_t (&a)[4],               \
                                        uint64_t at) {                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" rows "k32.s32.s8.s8 {" list "}, {" a0 "," a1 \
                 "," a2 "," a3 "}, " at_ ", 1;"                                                   \
                 : all("+r") : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(at));              \
  }
S4D_PRODUCT("80", 40, S4D_LIST_40, S4D_40, "%40", "%41", "%42", "%43", "%44")
S4D_PRODUCT("128", 64, S4D_LIST_64, S4D_64, "%64", "%65", "%66", "%67", "%68")
#undef S4D_PRODUCT
#undef S4D_LIST_64
#undef S4D_LIST_40
#undef S4D_64
#undef S4D_40
#undef S4D_8

__device__ inline void group_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void group_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Shared memory of the right operand: rows of kSpan bytes, 8 of them together, whose 16-byte pieces
// are exchanged by row so that neither side meets bank conflicts.
__device__ inline uint64_t describe(uint32_t shared) {
  return static_cast<uint64_t>(shared >> 4 & 0x3fff) | uint64_t{1} << 16 |
         static_cast<uint64_t>(8 * kSpan >> 4) << 32 | uint64_t{1} << 62;
}

// 16 bytes of weights. Where several blocks share a multiprocessor, and so its cache, they are kept
// there: the blocks walk the offsets in step, and most of what they read are weights.
template <bool kShared>
__device__ inline void load_weights(uint32_t (&to)[4], const void* from) {
  if constexpr (kShared) {
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from));
  } else {
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from));
  }
}

// 16 bytes into shared memory in the background, zeros without reading where `there` is false.
__device__ inline void gather_16(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

}  // namespace s4d::sparse::cuda
