#include "logging.h"

#include <atomic>
#include <cstdio>

namespace s4d_trt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

void log_error(const char* where, const char* message) noexcept {
  char line[512];
  std::snprintf(line, sizeof(line), "[s4d] %s: %s", where, message);
  try {
    nvinfer1::ILoggerFinder* finder = logger_finder;
    nvinfer1::ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger != nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, line);
      return;
    }
  } catch (...) {
    // A finder that throws must not take the engine down; the message still goes out below.
  }
  std::fprintf(stderr, "%s\n", line);
}

}  // namespace s4d_trt
