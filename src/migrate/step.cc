#include "migrate/step.h"

#include <signal.h>
#include <stdlib.h>

#include <string>

namespace ferry::migrate {

void stop_if_asked(Role role, Step step) {
  const char* const wanted = ::getenv("FERRY_STOP_AT");
  if (wanted == nullptr) {
    return;
  }
  const std::string here = std::string(name_of(role)) + ":" + std::string(info_of(step).name);
  if (here == wanted) {
    ::raise(SIGSTOP);
  }
}

}  // namespace ferry::migrate
