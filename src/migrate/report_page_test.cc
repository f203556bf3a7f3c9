#include "migrate/report_page.h"

#include <gtest/gtest.h>

namespace ferry::migrate {
namespace {

SendReport some_report() {
  SendReport report;
  report.container = "web<script>";
  report.pause_ms = 7.5;
  report.phases = {{"reach h2", 50, 0}, {"send memory", 400, 1 << 20}, {"move", 8, 4096}};
  report.rounds = {{.ms = 350, .bytes = 1 << 20, .dirty = 1 << 20}, {.ms = 5, .bytes = 4096, .dirty = 8192}};
  report.pause_parts = {{"stop", 2, 0}, {"hand over", 5.5, 0}, {"there: record", 1, 0}};
  report.notes = {"a & b"};
  return report;
}

TEST(ReportPage, NamesEveryPhaseRoundAndPartOfThePause) {
  const std::string page = report_page(some_report(), {.destination = "h2", .when = "today", .downtime_limit_ms = 20});
  for (const char* const part :
       {"reach h2", "send memory", "7.5 ms", "hand over", "there: record", "1.0 MiB", "<td>2</td>"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }
}

TEST(ReportPage, IsSelfContainedAndTakesNoMarkupFromOutside) {
  const std::string page = report_page(some_report(), {.destination = "<b>", .when = "today", .downtime_limit_ms = 20});
  EXPECT_EQ(page.find("<script"), std::string::npos);
  EXPECT_EQ(page.find("<b>h2"), std::string::npos);
  EXPECT_EQ(page.find("http"), std::string::npos);
  EXPECT_NE(page.find("web&lt;script&gt;"), std::string::npos);
  EXPECT_NE(page.find("a &amp; b"), std::string::npos);
}

TEST(ReportPage, OfAMoveWithoutRounds) {
  SendReport report = some_report();
  report.rounds.clear();
  report.pause_parts.clear();
  const std::string page = report_page(report, {.destination = "h2", .when = "today", .downtime_limit_ms = 20});
  EXPECT_EQ(page.find("Memory, in rounds"), std::string::npos);
  EXPECT_EQ(page.find("nan"), std::string::npos);
}

}  // namespace
}  // namespace ferry::migrate
