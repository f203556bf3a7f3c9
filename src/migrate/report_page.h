// The report of a move as one self-contained page of HTML: nothing is loaded from anywhere.
#pragma once

#include <string>

#include "base/error.h"
#include "migrate/send.h"

namespace ferry::migrate {

struct PageFacts {
  std::string destination;
  std::string when;  // for people
  double downtime_limit_ms = 0;
};

std::string report_page(const SendReport& report, const PageFacts& facts);
// Replaces what is there.
Result<void> write_report_page(const std::string& path, const SendReport& report, const PageFacts& facts);

}  // namespace ferry::migrate
