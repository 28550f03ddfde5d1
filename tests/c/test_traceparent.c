/* traceparent: the header by W3C's rules, with the cases of its own test suite. */
#include "traceparent.h"

#include "check.h"
#include "failmalloc.h"
#include "text.h"

#define TRACE "0af7651916cd43dd8448eb211c80319c"
#define PARENT "b7ad6b7169203331"

/* A header in memory of just its size. */
static bool parse(const char *header, fs_traceparent *parent)
{
    size_t len = strlen(header);
    uint8_t *copy = malloc(len > 0 ? len : 1);
    REQUIRE(copy != NULL);
    memcpy(copy, header, len);
    bool ok = fs_traceparent_parse((fs_slice){copy, len}, parent);
    free(copy);
    return ok;
}

static void test_what_is_one(void)
{
    static const uint8_t trace[] = {0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd,
                                    0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c};
    static const uint8_t span[] = {0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31};
    const struct {
        const char *header;
        int flags;
    } cases[] = {
        {"00-" TRACE "-" PARENT "-01", 1},       {"00-" TRACE "-" PARENT "-00", 0},
        {"00-" TRACE "-" PARENT "-03", 3},       {"00-" TRACE "-" PARENT "-ff", 0xff},
        {"01-" TRACE "-" PARENT "-01", 1},       {"cc-" TRACE "-" PARENT "-01", 1},
        {"cc-" TRACE "-" PARENT "-01-more", 1},  {"fe-" TRACE "-" PARENT "-00-", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fs_traceparent parent = {0};
        CHECK(parse(cases[i].header, &parent));
        CHECK_EQ(parent.state, FS_PARENT_THERE);
        CHECK_EQ(parent.flags, cases[i].flags);
        CHECK_MEM(parent.trace_id, trace, sizeof trace);
        CHECK_MEM(parent.parent_id, span, sizeof span);
    }
}

static void test_what_is_none(void)
{
    static const char *const headers[] = {
        "",
        "00",
        "00-" TRACE "-" PARENT,
        "00-" TRACE "-" PARENT "-",
        "00-" TRACE "-" PARENT "-1",
        "00-" TRACE "-" PARENT "-01-",              /* version 00 ends there */
        "00-" TRACE "-" PARENT "-01-more",
        "00-" TRACE "-" PARENT "-010",
        "cc-" TRACE "-" PARENT "-010",              /* a later one has a dash there */
        "ff-" TRACE "-" PARENT "-01",
        "0x-" TRACE "-" PARENT "-01",
        "0-" TRACE "-" PARENT "-01",
        " 0-" TRACE "-" PARENT "-01",
        "00-0AF7651916CD43DD8448EB211C80319C-" PARENT "-01",
        "00-" TRACE "-B7AD6B7169203331-01",
        "00-" TRACE "-" PARENT "-0A",
        "00-00000000000000000000000000000000-" PARENT "-01",
        "00-" TRACE "-0000000000000000-01",
        "00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01",
        "00-0af7651916cd43dd8448eb211c80319g-" PARENT "-01",
        "00-" TRACE "-b7ad6b716920333.-01",
        "00-" TRACE "-" PARENT "-.1",
        "00_" TRACE "-" PARENT "-01",
        "00-" TRACE "_" PARENT "-01",
        "00-" TRACE "-" PARENT "_01",
        " 00-" TRACE "-" PARENT "-01",
        "00-" TRACE "-" PARENT "-01 ",
    };
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        fs_traceparent parent = {0};
        CHECK_REPORT(!parse(headers[i], &parent), "taken: %s", headers[i]);
        CHECK_EQ(parent.state, FS_PARENT_NONE); /* untouched */
    }
}

static void test_a_request_has_one_or_none(void)
{
    fs_traceparent parent = {0};
    fs_traceparent_take(fs_slice_of("00-" TRACE "-" PARENT "-01"), &parent);
    CHECK_EQ(parent.state, FS_PARENT_THERE);
    fs_traceparent_take(fs_slice_of("00-" TRACE "-" PARENT "-01"), &parent); /* whose trace is it? */
    CHECK_EQ(parent.state, FS_PARENT_IGNORED);
    fs_traceparent_take(fs_slice_of("00-" TRACE "-" PARENT "-01"), &parent);
    CHECK_EQ(parent.state, FS_PARENT_IGNORED);
    parent = (fs_traceparent){0};
    fs_traceparent_take(fs_slice_of("nonsense"), &parent);
    CHECK_EQ(parent.state, FS_PARENT_IGNORED);
    fs_traceparent_take(fs_slice_of("00-" TRACE "-" PARENT "-01"), &parent);
    CHECK_EQ(parent.state, FS_PARENT_IGNORED);
}

int main(void)
{
    test_what_is_one();
    test_what_is_none();
    test_a_request_has_one_or_none();
    return check_done();
}
