// Messages to the logger of the engine that calls, or to stderr where none was handed over.
#pragma once

#include <NvInferRuntime.h>

#include <exception>

namespace s4d_trt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;
void log_error(const char* where, const char* message) noexcept;

// Runs `body` and returns its value; an exception is logged and gives `fallback`. TensorRT's
// methods must not throw.
template <typename Value, typename Body>
Value guarded(const char* where, Value fallback, Body&& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    log_error(where, error.what());
  } catch (...) {
    log_error(where, "unknown exception");
  }
  return fallback;
}

}  // namespace s4d_trt
