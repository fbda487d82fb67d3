#include "dense_chains.h"

#include <cctype>
#include <sstream>

namespace s4d {
namespace {

// "128rn": width and flags. False where it is not that.
bool parse_layer(const std::string& word, DenseLayer* out) {
  std::size_t at = 0;
  int64_t width = 0;
  while (at < word.size() && std::isdigit(static_cast<unsigned char>(word[at]))) {
    width = width * 10 + (word[at++] - '0');
    if (width > kMaxChainWidth) return false;
  }
  if (width < 1) return false;
  out->width = static_cast<int32_t>(width);
  out->relu = out->norm = false;
  for (; at < word.size(); ++at) {
    if (word[at] == 'r') {
      out->relu = true;
    } else if (word[at] == 'n') {
      out->norm = true;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

int64_t parse_dense_chains(const std::string& text, DenseChains* out) {
  std::istringstream parts(text);
  std::string part;
  int64_t parameters = 0;
  out->count = 0;
  out->output_width = 0;
  while (std::getline(parts, part, ';')) {
    if (out->count == kMaxChains) return -1;
    DenseChain& chain = out->chain[out->count++];
    chain = DenseChain{};
    std::istringstream words(part);
    if (!(words >> chain.first >> chain.width)) return -1;
    if (chain.first < 0 || chain.width < 1 || chain.width > kMaxChainWidth) return -1;
    int64_t width = chain.width;
    std::string word;
    while (words >> word) {
      if (chain.layers == kMaxChainLayers) return -1;
      DenseLayer& layer = chain.layer[chain.layers++];
      if (!parse_layer(word, &layer)) return -1;
      layer.parameters = parameters;
      parameters += (width + (layer.norm ? 3 : 1)) * layer.width;
      parameters = (parameters + 3) / 4 * 4;
      width = layer.width;
    }
    if (chain.layers == 0) return -1;
    chain.target = out->output_width;
    out->output_width += static_cast<int32_t>(width);
  }
  return out->count > 0 ? parameters : -1;
}

}  // namespace s4d
