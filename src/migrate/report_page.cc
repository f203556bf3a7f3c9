#include "migrate/report_page.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "sys/file.h"

namespace ferry::migrate {
namespace {

constexpr double kWidth = 920;  // of a drawing, in its own units
constexpr double kLeast = 1.5;  // what is too short to be seen is still drawn

constexpr std::string_view kStyle = R"(
:root{--ink:#1c2430;--soft:#5d6b7e;--line:#d9e0e8;--paper:#fff;--wash:#f5f7fa;--c0:#2f6f9f;--c1:#3d9a8b;--c2:#8a9a3d;--c3:#c98a2b;--c4:#7a5ea8;--c5:#4f7fd0;--c6:#5a8f5a;--hot:#c2412d}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf2;--soft:#9aa8ba;--line:#334052;--paper:#151b24;--wash:#1d2531;--c0:#5fa3d6;--c1:#5cc0af;--c2:#b5c45f;--c3:#e0a94f;--c4:#a98bd6;--c5:#85a9ec;--c6:#86bd86;--hot:#ef6a54}}
*{box-sizing:border-box}body{margin:0;background:var(--wash);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1000px;margin:0 auto;padding:32px 20px 56px}h1{font-size:26px;line-height:1.25;margin:0 0 4px;font-weight:650}h2{font-size:17px;margin:0 0 4px;font-weight:650}
p{margin:0 0 12px;color:var(--soft)}section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:20px;margin-top:18px;overflow-x:auto}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:20px}.facts div{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.facts b{display:block;font-size:23px;font-weight:650;font-variant-numeric:tabular-nums}.facts span{color:var(--soft);font-size:13px}.facts .hot b{color:var(--hot)}
svg{display:block;width:100%;min-width:640px;height:auto;font:12px system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}text{fill:var(--ink)}text.s{fill:var(--soft)}line{stroke:var(--line)}
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}.c4{fill:var(--c4)}.c5{fill:var(--c5)}.c6{fill:var(--c6)}.hot{fill:var(--hot)}.limit{stroke:var(--hot);stroke-dasharray:5 4}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:500;font-size:13px}th:first-child,td:first-child{text-align:left;padding-left:0}tr:last-child td{border-bottom:0}
ul{margin:0;padding-left:20px}i.k{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:8px;vertical-align:-1px}i.c0{background:var(--c0)}i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}i.c4{background:var(--c4)}i.c5{background:var(--c5)}i.c6{background:var(--c6)}i.hot{background:var(--hot)}
)";

// Names of containers, hosts and notes come from outside.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string time_text(double ms) {
  if (ms >= 1000) {
    return fmt::format("{:.{}f} s", ms / 1000, ms < 10000 ? 2 : 1);
  }
  return ms == 0     ? "0"
         : ms >= 100 ? fmt::format("{:.0f} ms", ms)
         : ms >= 1   ? fmt::format("{:.1f} ms", ms)
                     : fmt::format("{:.2f} ms", ms);
}

std::string rate_text(std::uint64_t bytes, double ms) {
  return ms <= 0 ? "–" : byte_text(static_cast<std::uint64_t>(static_cast<double>(bytes) / ms * 1000)) + "/s";
}

// A step of 1, 2 or 5 times a power of ten that divides `most` into about five parts.
double grid_step(double most) {
  const double rough = std::max(most, 1e-6) / 5;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  const double lead = rough / power;
  return power * (lead < 1.5 ? 1 : lead < 3.5 ? 2 : lead < 7.5 ? 5 : 10);
}

class Page {
 public:
  template <class... Args>
  void put(fmt::format_string<Args...> text, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), text, std::forward<Args>(args)...);
  }
  void raw(std::string_view text) { out_ += text; }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

std::string colour(std::size_t index, std::string_view name) {
  return name == "move" ? "hot" : fmt::format("c{}", index % 7);
}

// Lines at round values over the width of a drawing.
void draw_grid(Page& page, double most, double height) {
  const double step = grid_step(most);
  for (double at = 0; at <= most * 1.0001; at += step) {
    const double x = at / most * kWidth;
    page.put(
        R"(<line x1="{0:.1f}" y1="0" x2="{0:.1f}" y2="{1:.0f}"/><text class="s" x="{2:.1f}" y="{3:.0f}"{4}>{5}</text>)",
        x, height, std::min(x + 4, kWidth), height + 14, x + 60 > kWidth ? R"( text-anchor="end")" : "", time_text(at));
  }
}

struct Bar {
  std::string name;
  double ms = 0;
  double from = 0;
  std::string colour;
};

// Each below the one before, from where that ended: their names stay legible however short they are.
void draw_cascade(Page& page, const std::vector<Bar>& bars, double most, std::string_view title) {
  constexpr double kRow = 24;
  const double height = kRow * static_cast<double>(bars.size());
  page.put(R"(<svg viewBox="0 -2 {:.0f} {:.0f}" role="img" aria-label="{}">)", kWidth, height + 24, escaped(title));
  draw_grid(page, most, height);
  double y = 3;
  for (const Bar& bar : bars) {
    const double x = bar.from / most * kWidth;
    const double width = std::max(bar.ms / most * kWidth, kLeast);
    const std::string label = fmt::format("{} · {}", escaped(bar.name), time_text(bar.ms));
    const bool left = x + width > kWidth * 0.6;
    page.put(R"(<rect class="{}" x="{:.1f}" y="{:.0f}" width="{:.1f}" height="{:.0f}" rx="3"><title>{}</title></rect>)",
             bar.colour, x, y, width, kRow - 6, label);
    if (left && width > kWidth * 0.4) {
      page.put(R"(<text x="{:.1f}" y="{:.0f}" style="fill:#fff">{}</text>)", x + 8, y + 13, label);
    } else {
      page.put(R"(<text x="{:.1f}" y="{:.0f}"{}>{}</text>)", left ? x - 6 : x + width + 6, y + 13,
               left ? R"( text-anchor="end")" : "", label);
    }
    y += kRow;
  }
  page.raw("</svg>");
}

void put_timeline(Page& page, const SendReport& report) {
  std::vector<Bar> bars;
  double at = 0;
  for (std::size_t i = 0; i < report.phases.size(); ++i) {
    const Phase& phase = report.phases[i];
    bars.push_back({phase.name, phase.ms, at, colour(i, phase.name)});
    at += phase.ms;
  }
  page.raw("<section><h2>The move</h2><p>The container works all the time, but for the pause inside of “move”.</p>");
  if (!bars.empty()) {
    draw_cascade(page, bars, std::max(at, 1e-3), "phases of the move over time");
  }
  page.raw("<table><tr><th>phase</th><th>time</th><th>share</th><th>sent</th></tr>");
  for (std::size_t i = 0; i < report.phases.size(); ++i) {
    const Phase& phase = report.phases[i];
    page.put(R"(<tr><td><i class="k {}"></i>{}</td><td>{}</td><td>{:.0f} %</td><td>{}</td></tr>)", bars[i].colour,
             escaped(phase.name), time_text(phase.ms), at > 0 ? phase.ms / at * 100 : 0,
             phase.bytes == 0 ? "–" : byte_text(phase.bytes));
  }
  page.raw("</table></section>");
}

// What was written during each round, which is what the next one has to send, beside what was sent.
void draw_rounds(Page& page, const std::vector<Round>& rounds) {
  constexpr double kHeight = 180;
  double most_bytes = 1;
  for (const Round& round : rounds) {
    most_bytes = std::max({most_bytes, static_cast<double>(round.bytes), static_cast<double>(round.dirty)});
  }
  // From a quarter of a page up: the last rounds are thousandths of the first.
  constexpr double kLeastBytes = 1024;
  const auto y_of = [&](double value, double most) {
    return value <= kLeastBytes
               ? kHeight
               : kHeight - std::log10(value / kLeastBytes) / std::log10(std::max(most / kLeastBytes, 10.0)) * kHeight;
  };
  const double slot = kWidth / static_cast<double>(rounds.size());
  const double width = std::min(slot * 0.3, 46.0);
  page.put(
      R"(<svg viewBox="0 -8 {:.0f} {:.0f}" role="img" aria-label="bytes written and sent in each round, logarithmic">)",
      kWidth, kHeight + 36);
  for (const double bytes : {32.0 * 1024, 1024.0 * 1024, 32.0 * 1024 * 1024, 1024.0 * 1024 * 1024}) {
    if (bytes < most_bytes) {
      const double y = y_of(bytes, most_bytes);
      page.put(R"(<line x1="0" x2="{0:.0f}" y1="{1:.1f}" y2="{1:.1f}"/><text class="s" x="0" y="{2:.1f}">{3}</text>)",
               kWidth, y, y - 3, byte_text(static_cast<std::uint64_t>(bytes)));
    }
  }
  for (std::size_t i = 0; i < rounds.size(); ++i) {
    const double middle = slot * (static_cast<double>(i) + 0.5);
    const std::array<std::pair<double, const char*>, 2> pair{std::pair{static_cast<double>(rounds[i].dirty), "c3"},
                                                             std::pair{static_cast<double>(rounds[i].bytes), "c0"}};
    double x = middle - width;
    for (const auto& [value, shade] : pair) {
      const double y = y_of(value, most_bytes);
      page.put(
          R"(<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2"><title>round {}: {}</title></rect>)",
          shade, x, std::min(y, kHeight - kLeast), width - 2, std::max(kHeight - y, kLeast), i + 1,
          byte_text(static_cast<std::uint64_t>(value)));
      x += width;
    }
    if (rounds.size() <= 16 || i % 4 == 0) {
      page.put(R"(<text x="{:.1f}" y="{:.0f}" text-anchor="middle">{}</text>)", middle, kHeight + 16, i + 1);
    }
  }
  page.put(R"(<line x1="0" x2="{0:.0f}" y1="{1:.0f}" y2="{1:.0f}"/></svg>)", kWidth, kHeight);
}

void put_rounds(Page& page, const SendReport& report, const PageFacts& facts) {
  if (report.rounds.empty()) {
    return;
  }
  page.put(
      "<section><h2>Memory, in rounds</h2><p><i class=\"k c3\"></i>written since the round before &nbsp; <i class=\"k c0\"></i>sent, without pages of "
      "zeros. Heights are logarithmic. The rounds end when one takes no longer than {}.</p>",
      time_text(facts.downtime_limit_ms));
  draw_rounds(page, report.rounds);
  page.raw(
      "<table><tr><th>round</th><th>time</th><th>written</th><th>sent</th><th>throughput</th><th>dirty rate</th></tr>");
  double before = 0;
  for (std::size_t i = 0; i < report.rounds.size(); ++i) {
    const Round& round = report.rounds[i];
    page.put("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>", i + 1, time_text(round.ms),
             byte_text(round.dirty), byte_text(round.bytes), rate_text(round.bytes, round.ms),
             i == 0 ? "–" : rate_text(round.dirty, before));
    before = round.ms;
  }
  page.raw("</table></section>");
}

// The last thing the destination did is the end of the pause; much of the rest it did while the source was still
// busy, so its parts are counted back from there.
void put_pause(Page& page, const SendReport& report) {
  constexpr std::string_view kThere = "there: ";
  std::vector<Bar> bars;
  double at = 0;
  double there = report.pause_ms;
  for (const Phase& part : report.pause_parts) {
    there -= part.name.starts_with(kThere) ? part.ms : 0;
  }
  there = std::max(there, 0.0);
  for (std::size_t i = 0; i < report.pause_parts.size(); ++i) {
    const Phase& part = report.pause_parts[i];
    if (part.name.starts_with(kThere)) {
      bars.push_back({part.name, part.ms, there, fmt::format("c{}", 4 + i % 3)});
      there += part.ms;
      continue;
    }
    bars.push_back({part.name, part.ms, at, fmt::format("c{}", i % 4)});
    at += part.ms;
  }
  page.put(
      "<section><h2>The pause: {}</h2><p>Give or take {}, since two clocks were read. Much of what the destination did (“there”) it did while the source was busy, too.</p>",
      time_text(report.pause_ms), time_text(report.pause_error_ms));
  double most = std::max(report.pause_ms, 1e-3);
  for (const Bar& bar : bars) {
    most = std::max(most, bar.from + bar.ms);
  }
  if (!bars.empty()) {
    draw_cascade(page, bars, most, "parts of the pause over time");
  }
  page.raw("</section>");
}

}  // namespace

std::string report_page(const SendReport& report, const PageFacts& facts) {
  Page page;
  double total = 0;
  for (const Phase& phase : report.phases) {
    total += phase.ms;
  }
  const std::string title = fmt::format("{} → {}", escaped(report.container), escaped(facts.destination));
  page.put(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
      "<title>ferry: {}</title><style>",
      title);
  page.raw(kStyle);
  page.put("</style></head><body><main><h1>{}</h1><p>Moved by ferry, {}.</p><div class=\"facts\">", title,
           escaped(facts.when));
  page.put("<div class=\"hot\"><b>{}</b><span>pause</span></div><div><b>{}</b><span>from first to last</span></div>",
           time_text(report.pause_ms), time_text(total));
  page.put("<div><b>{}</b><span>sent in all</span></div><div><b>{}</b><span>{} of memory</span></div></div>",
           byte_text(report.bytes), report.rounds.size(), report.rounds.size() == 1 ? "round" : "rounds");
  put_timeline(page, report);
  put_rounds(page, report, facts);
  put_pause(page, report);
  if (!report.notes.empty()) {
    page.raw("<section><h2>Worth knowing</h2><ul>");
    for (const std::string& note : report.notes) {
      page.put("<li>{}</li>", escaped(note));
    }
    page.raw("</ul></section>");
  }
  page.raw("</main></body></html>\n");
  return page.take();
}

Result<void> write_report_page(const std::string& path, const SendReport& report, const PageFacts& facts) {
  const std::string page = report_page(report, facts);
  FERRY_TRY(const UniqueFd file, sys::open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644));
  return sys::write_all(file.get(), page.data(), page.size(), path);
}

}  // namespace ferry::migrate
