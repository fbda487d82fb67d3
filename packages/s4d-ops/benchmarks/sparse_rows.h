// Index rows batch z y x of a 41 x 1440 x 1440 grid on the host: more of them, another order, and the
// sites that the encoder must find.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <random>
#include <set>
#include <vector>

// Rows of distinct cells: the given ones, then copies of them moved sideways.
inline std::vector<int32_t> grow(const std::vector<int32_t>& rows, size_t n) {
  std::vector<int32_t> all(rows);
  std::set<int64_t> seen;
  const auto key = [](const int32_t* r) {
    return (int64_t{r[1]} * 1440 + r[2]) * 1440 + r[3];
  };
  for (size_t i = 0; i < rows.size(); i += 4) seen.insert(key(&rows[i]));
  for (int copy = 1; all.size() < 4 * n; ++copy) {
    for (size_t i = 0; i < rows.size() && all.size() < 4 * n; i += 4) {
      const int32_t r[4] = {0, rows[i + 1], (rows[i + 2] + 211 * copy) % 1440,
                            (rows[i + 3] + 337 * copy) % 1440};
      if (seen.insert(key(r)).second) all.insert(all.end(), r, r + 4);
    }
  }
  return all;
}

inline std::vector<int32_t> shuffled(const std::vector<int32_t>& rows, std::mt19937& rng) {
  std::vector<size_t> order(rows.size() / 4);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  std::vector<int32_t> out(rows.size());
  for (size_t i = 0; i < order.size(); ++i) {
    std::copy(&rows[4 * order[i]], &rows[4 * order[i]] + 4, &out[4 * i]);
  }
  return out;
}

// Sites of levels 1 to 4, counted on the host independently of the kernels.
inline std::vector<int32_t> count_sites(const int32_t* rows, size_t n) {
  std::vector<int32_t> counts{int32_t(n)};
  std::vector<std::array<int32_t, 3>> cells(n);
  for (size_t i = 0; i < n; ++i) cells[i] = {rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]};
  const int size[4][3] = {{21, 720, 720}, {11, 360, 360}, {5, 180, 180}, {2, 180, 180}};
  for (int level = 0; level < 4; ++level) {
    const int* s = size[level];
    std::vector<bool> set(size_t(s[0]) * s[1] * s[2]);
    std::vector<std::array<int32_t, 3>> next;
    const int pad = level < 2 ? 1 : 0, side = level < 3 ? 1 : 0;
    for (const auto& c : cells) {
      for (int z = 0; z < s[0]; ++z) {
        if (c[0] + pad - 2 * z < 0 || c[0] + pad - 2 * z > 2) continue;
        for (int y = side ? c[1] / 2 : c[1]; y <= (side ? (c[1] + 1) / 2 : c[1]); ++y) {
          for (int x = side ? c[2] / 2 : c[2]; x <= (side ? (c[2] + 1) / 2 : c[2]); ++x) {
            if (y >= s[1] || x >= s[2]) continue;
            const size_t at = (size_t(z) * s[1] + y) * s[2] + x;
            if (set[at]) continue;
            set[at] = true;
            next.push_back({z, y, x});
          }
        }
      }
    }
    counts.push_back(int32_t(next.size()));
    cells.swap(next);
  }
  return counts;
}
