#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(Uts, KeepsBothNamesOfItsOwnNamespace) {
  ASSERT_EQ(::unshare(CLONE_NEWUTS), 0);
  ASSERT_EQ(::sethostname("inner-host", 10), 0);
  ASSERT_EQ(::setdomainname("inner.domain", 12), 0);

  checkpoint_here();

  utsname names{};
  ASSERT_EQ(::uname(&names), 0);
  EXPECT_STREQ(names.nodename, "inner-host");
  EXPECT_STREQ(names.domainname, "inner.domain");
}

}  // namespace
}  // namespace ferry::live
