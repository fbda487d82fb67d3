// Sparse convolution on CUDA: the whole API, one header per stage. Host code only; any C++ compiler.
//
//   points  -- voxelize_cuda.h -->  index rows and features
//   rows    -- site_map_cuda.h -->  sorted sites of every level, place_rows: features in that order
//   sites   -- rulebook_cuda.h -->  tables (submanifold, strided, inverse)
//   rows    -- convolution_cuda.h --> rows
//   rows   <-- layout_cuda.h   -->  rows of another type or order, sums of rows, dense maps
//   training -- gradient_cuda.h
//
// What holds for every function:
// * Pointers are device memory, aligned to 16 bytes (what *_bytes() sizes: 256), except task
//   structs and arrays of them, which are host memory and may die after the call.
// * Nothing is allocated, synchronised or read back, so all of it can be captured in a CUDA graph.
//   Numbers that depend on data stay on the device: `count` points to one int32, `capacity` is the
//   number of rows that the arrays have. Work is done for min(*count, capacity) rows; launches are
//   sized by capacity. Rows beyond the count are neither read nor written.
// * The return value reports what is known without the data: cudaErrorInvalidValue for a size or
//   type that is not served (each header names them; doors check first and give the message), else
//   the launch's error. What only the data shows is counted in `errors`, kErrorSlots int32 on the
//   device: the caller zeroes them before, and reads them with the results.
// * Scratch and workspaces may be reused by the next call on the same stream.
// * Same inputs, same bits: no result depends on the order in which threads run.
#pragma once

#include "convolution_cuda.h"
#include "gradient_cuda.h"
#include "layout_cuda.h"
#include "rulebook_cuda.h"
#include "site_map_cuda.h"
#include "voxelize_cuda.h"
