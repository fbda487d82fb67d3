// Loads a plugin library into the plugin registry of a TensorRT runtime library, as an engine or
// trtexec does, and makes a plugin by each name. Needs no GPU.
//
//   test_tensorrt_registry RUNTIME_LIBRARY PLUGIN_LIBRARY
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <memory>

using namespace nvinfer1;

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  void* runtime = dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL);
  if (runtime == nullptr) {
    std::printf("cannot load: %s\n", dlerror());
    return 1;
  }
  const auto get = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(runtime, "getPluginRegistry"));
  IPluginRegistry* registry = get == nullptr ? nullptr : get();
  if (registry == nullptr) {
    std::printf("the runtime gave no plugin registry\n");
    return 1;
  }
  IPluginRegistry::PluginLibraryHandle handle = registry->loadLibrary(argv[2]);
  if (handle == nullptr) {
    std::printf("loadLibrary refused the plugin library\n");
    return 1;
  }
  const char* const names[][2] = {{"DeformableAggregation", ""},
                                  {"DeformableAggregation", "s4d"},
                                  {"DeformableAttentionAggrPlugin", ""},
                                  {"DeformableAttentionAggrPlugin", "custom"}};
  int failures = 0;
  for (const auto& [name, space] : names) {
    IPluginCreatorInterface* found = registry->getCreator(name, "1", space);
    std::unique_ptr<IPluginV3> plugin;
    if (found != nullptr) {
      const float scale = 0.5F;
      const PluginField field("scale", &scale, PluginFieldType::kFLOAT32, 1);
      const PluginFieldCollection fields = {1, &field};
      plugin.reset(static_cast<IPluginCreatorV3One*>(found)->createPlugin(
          "layer", &fields, TensorRTPhase::kRUNTIME));
    }
    std::printf("%s in '%s': %s\n", name, space, plugin ? "made" : "MISSING");
    failures += plugin ? 0 : 1;
  }
  registry->deregisterLibrary(handle);
  if (registry->getCreator(names[0][0], "1", names[0][1]) != nullptr) {
    std::printf("still there after deregisterLibrary\n");
    ++failures;
  }
  return failures == 0 ? 0 : 1;
}
