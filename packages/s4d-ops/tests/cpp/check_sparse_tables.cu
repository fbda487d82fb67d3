#include "sparse_check.h"

namespace {

std::string text(const char* what, const cpu::Grid& g, size_t n, const cpu::Geometry& geo) {
  char s[200];
  std::snprintf(s, sizeof s, "%s, %d x %d x %d x %d, %zu rows, kernel %d%d%d stride %d%d%d", what,
                int(g.batch), int(g.shape[0]), int(g.shape[1]), int(g.shape[2]), n,
                int(geo.kernel[0]), int(geo.kernel[1]), int(geo.kernel[2]), int(geo.stride[0]),
                int(geo.stride[1]), int(geo.stride[2]));
  return s;
}

void check_tables(const cpu::Grid& g, size_t n, const cpu::Geometry& geo) {
  const auto rows = random_rows(g, n);
  Array<int32_t> d_rows(rows), errors(dev::kErrorSlots), sorted(4 * n), order(n);
  auto d_count = number(int64_t(n));
  errors.fill(0);

  const auto book = cpu::strided_rulebook(rows.data(), int64_t(n), g, geo, 1);
  const size_t m = size_t(book.out_rows);
  Map in(view(g)), out(view(book.out_grid));
  Array<int32_t> out_rows(4 * m);
  dev::SiteLevel chain[2];
  chain[0].map = in.map;
  chain[0].indices = sorted;
  chain[0].capacity = int64_t(n);
  chain[1].map = out.map;
  chain[1].geometry = view(geo, false);
  chain[1].indices = out_rows;
  chain[1].capacity = int64_t(m);
  OK(dev::build_sites(d_rows, d_count, int64_t(n), chain, 2, false, errors, 0));
  dev::PlaceTask place;
  place.indices = d_rows;
  place.count = d_count;
  place.capacity = int64_t(n);
  place.map = in.map;
  place.order = order;
  OK(dev::place_rows(place, 0));
  const auto h_sorted = sorted.host(), h_order = order.host();
  const auto reference = cpu::sort_rows(rows.data(), int64_t(n), g);
  bool same = in.count.host()[0] == int(n);
  for (size_t i = 0; i < n; ++i) {
    int32_t r[4];
    cpu::key_to_row(g, reference.keys[i], r);
    same &= std::equal(r, r + 4, &h_sorted[4 * i]) && h_order[i] == reference.rows[i];
  }
  const auto none = std::vector<int32_t>(dev::kErrorSlots, 0);
  expect(same && errors.host() == none, text("sorted rows and order", g, n, geo));
  expect(out.count.host()[0] == int(m) && out_rows.host() == book.out_indices,
         text("strided rows in a chain", g, n, geo));

  if (geo.dilation == cpu::Axes{1, 1, 1} && geo.kernel[0] >= geo.stride[0] &&
      geo.kernel[1] >= geo.stride[1] && geo.kernel[2] >= geo.stride[2]) {
    Map beside(view(book.out_grid));
    Array<int32_t> beside_rows(4 * m);
    dev::SiteLevel extended[2] = {chain[0], chain[1]};
    extended[1].map = beside.map;
    extended[1].indices = beside_rows;
    OK(dev::extend_sites(d_rows, d_count, int64_t(n), extended, 2, false, errors, 0));
    expect(beside_rows.host() == book.out_indices, text("strided rows beside", g, n, geo));
  }
  Map alone(view(book.out_grid));
  Array<int32_t> alone_rows(4 * m);
  dev::SiteLevel level = chain[1];
  level.map = alone.map;
  level.indices = alone_rows;
  OK(dev::strided_sites(d_rows, d_count, int64_t(n), level, false, errors, 0));
  expect(alone_rows.host() == book.out_indices, text("strided rows alone", g, n, geo));

  const auto sub = cpu::submanifold_rulebook(rows.data(), int64_t(n), g, geo, 1);
  const auto sub_sorted = cpu::submanifold_rulebook(h_sorted.data(), int64_t(n), g, geo, 1);
  Array<int32_t> a(sub.table.size()), b(sub.table.size()), c(book.table.size());
  const auto subm = view(geo, true), strided = view(geo, false);
  const dev::TableTask tasks[] = {
      {d_rows, d_count, int64_t(n), in.map, order, subm, a},
      {sorted, in.count, int64_t(n), in.map, nullptr, subm, b},
      {out_rows, out.count, int64_t(m), in.map, order, strided, c}};
  OK(dev::build_tables(tasks, 3, 0));
  expect(a.host() == sub.table, text("submanifold table, unsorted rows", g, n, geo));
  expect(b.host() == sub_sorted.table, text("submanifold table", g, n, geo));
  expect(c.host() == book.table, text("strided table", g, n, geo));

  const int volume = int(geo.volume());
  Array<int32_t> transposed(size_t(volume) * n);
  OK(dev::transpose_table(c, volume, out.count, int64_t(m), int64_t(n), transposed, errors, 0));
  OK(dev::check_table(c, volume, out.count, int64_t(m), d_count, errors, 0));
  expect(transposed.host() == cpu::transpose_table(book.table.data(), volume, int64_t(m),
                                                   int64_t(n), 1) && errors.host() == none,
         text("transposed table", g, n, geo));

  // Faults are counted.
  auto bad = rows;
  bad[4] = 99;
  if (n > 3) std::copy(&bad[8], &bad[12], &bad[12]);
  Array<int32_t> d_bad(bad);
  errors.fill(0);
  dev::SiteLevel small = chain[0];
  small.capacity = int64_t(n) / 2;
  OK(dev::build_sites(d_bad, d_count, int64_t(n), &small, 1, false, errors, 0));
  const auto counted = errors.host();
  expect(counted[dev::kRowsOutside] == (n > 1 ? 1 : 0) &&
             counted[dev::kRowsTwice] == (n > 3 ? 1 : 0) &&
             counted[dev::kRowsLost] == std::max(0, in.count.host()[0] - int(n) / 2),
         text("faults counted", g, n, geo));
}

// Five levels at once against each level made from the one before.
void check_chain(size_t n) {
  const cpu::Grid first{2, {41, 150, 160}};
  const auto rows = random_rows(first, n);
  Array<int32_t> d_rows(rows), errors(dev::kErrorSlots);
  const auto count = number(int64_t(n));
  const dev::GridView grids[5] = {view(first), {2, 21, 75, 80}, {2, 11, 38, 40}, {2, 5, 19, 20},
                                  {2, 2, 19, 20}};
  const dev::GeometryView down{{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}};
  const dev::GeometryView geometry[5] = {down, down, down,
                                         {{3, 3, 3}, {2, 2, 2}, {0, 1, 1}, {1, 1, 1}},
                                         {{3, 1, 1}, {2, 1, 1}, {0, 0, 0}, {1, 1, 1}}};
  std::vector<Map> maps, alone, beside;
  std::vector<Array<int32_t>> listed, listed_alone, listed_beside;
  dev::SiteLevel chain[5], single[5], extended[5];
  const auto level = [&](int i, std::vector<Map>& map, std::vector<Array<int32_t>>& indices) {
    map.emplace_back(grids[i]);
    indices.emplace_back(4 * 60000);
    dev::SiteLevel l;
    l.map = map.back().map;
    l.geometry = geometry[i];
    l.indices = indices.back();
    l.capacity = 60000;
    return l;
  };
  errors.fill(0);
  for (int i = 0; i < 5; ++i) {
    chain[i] = level(i, maps, listed);
    single[i] = level(i, alone, listed_alone);
    extended[i] = level(i, beside, listed_beside);
  }
  OK(dev::build_sites(d_rows, count, int64_t(n), chain, 5, false, errors, 0));
  OK(dev::extend_sites(d_rows, count, int64_t(n), extended, 5, false, errors, 0));
  OK(dev::build_sites(d_rows, count, int64_t(n), single, 1, false, errors, 0));
  for (int i = 1; i < 5; ++i) {
    OK(dev::strided_sites(single[i - 1].indices, single[i - 1].map.count, 60000, single[i], false,
                          errors, 0));
  }
  bool same = errors.host() == std::vector<int32_t>(dev::kErrorSlots, 0);
  for (int i = 0; i < 5; ++i) {
    const int sites = alone[i].count.host()[0];
    const auto want = listed_alone[i].host();
    for (const auto& other : {&listed, &listed_beside}) {
      if (i == 0 && other == &listed_beside) continue;
      const auto got = (*other)[i].host();
      same &= std::equal(want.begin(), want.begin() + 4 * sites, got.begin());
    }
    same &= maps[i].count.host()[0] == sites && (i == 0 || beside[i].count.host()[0] == sites);
  }
  expect(same, "chain of five levels from " + std::to_string(n) + " rows");
}

}  // namespace

void check_sites_and_tables(bool brief) {
  check_tables({2, {12, 40, 41}}, brief ? 500 : 5000, {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}});
  check_tables({1, {9, 33, 70}}, 700, {{3, 1, 1}, {2, 1, 1}, {0, 0, 0}, {1, 1, 1}});
  check_tables({1, {7, 13, 21}}, 1, {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}});
  check_tables({1, {31, 30, 29}}, 400, {{5, 3, 1}, {3, 1, 2}, {2, 1, 0}, {2, 1, 3}});
  check_tables({2, {9, 10, 11}}, 990, {{3, 1, 3}, {2, 1, 3}, {0, 0, 1}, {1, 1, 1}});
  check_tables({1, {8, 9, 97}}, 300, {{1, 1, 1}, {4, 4, 4}, {0, 0, 0}, {1, 1, 1}});
  check_chain(1);
  check_chain(brief ? 300 : 20000);
  if (!brief) {
    check_tables({3, {41, 300, 300}}, 20000, {{3, 3, 3}, {2, 2, 2}, {0, 1, 1}, {1, 1, 1}});
    check_tables({16, {41, 1440, 1440}}, 20000, {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}});
  }
}
