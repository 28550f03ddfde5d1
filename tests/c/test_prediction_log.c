/* test_prediction_log: what is wrapped around a request and its response, byte for byte, and field by field. */
#include "prediction_log.h"

#include "check.h"

#define BYTES(text) ((fs_slice){(const uint8_t *)(text), sizeof(text) - 1})

static size_t join(const fs_prediction_log *log, uint8_t *dst)
{
    size_t len = 0;
    for (int i = 0; i < log->n_pieces; i++) {
        if (log->pieces[i].len > 0)
            memcpy(dst + len, log->pieces[i].data, log->pieces[i].len);
        len += log->pieces[i].len;
    }
    CHECK_EQ(len, log->bytes);
    return len;
}

/* The bytes of the one field of that number. */
static fs_slice field(fs_slice message, uint32_t number)
{
    fs_wire w = fs_wire_over(message.data, message.len);
    fs_slice found = {0}, bytes;
    int n = 0;
    uint32_t tag;
    while (w.at < w.end) {
        REQUIRE(fs_wire_read_tag(&w, &tag));
        if (tag == FS_WIRE_TAG(number, FS_WIRE_BYTES)) {
            REQUIRE(fs_wire_read_bytes(&w, &bytes));
            found = bytes;
            n++;
        } else {
            REQUIRE(fs_wire_skip(&w, tag, 10));
        }
    }
    CHECK_EQ(n, 1);
    return found;
}

static void check_slice(fs_slice slice, fs_slice expected)
{
    CHECK_EQ(slice.len, expected.len);
    if (slice.len == expected.len && slice.len > 0)
        CHECK_MEM(slice.data, expected.data, expected.len);
}

/* model_spec {name: "m"}, and of the response {name: "m", version {value: 3}}. */
#define REQUEST "\x0a\x03\x0a\x01m\x12\x02xy"
#define RESPONSE "\x0a\x04rest\x12\x07\x0a\x01m\x12\x02\x08\x03"
#define SAMPLING "\x12\x09\x09\0\0\0\0\0\0\xf0\x3f"

static void test_predict_byte_for_byte(void)
{
    static const uint8_t expected[] =
        "\x0a\x17" "\x0a\x07\x0a\x01m\x12\x02\x08\x03" SAMPLING "\x20\xd2\x09" /* LogMetadata, 1234 s */
        "\x32\x1c" "\x0a\x09" REQUEST "\x12\x0f" RESPONSE;                      /* predict_log */
    uint8_t made[200];
    fs_prediction_log log;
    fs_slice response = BYTES(RESPONSE);
    CHECK_OK(fs_prediction_log_wrap(FS_LOG_PREDICT, BYTES(SAMPLING), 1234, BYTES(REQUEST), &response, &log));
    size_t len = join(&log, made);
    CHECK_EQ(len, sizeof expected - 1);
    CHECK_MEM(made, expected, sizeof expected - 1);
}

static void test_each_kind_has_its_field(void)
{
    static const uint32_t fields[] = {6, 2, 3};
    uint8_t made[200];
    fs_prediction_log log;
    fs_slice response = BYTES(RESPONSE);
    for (int kind = FS_LOG_PREDICT; kind <= FS_LOG_REGRESS; kind++) {
        CHECK_OK(fs_prediction_log_wrap((enum fs_log_kind)kind, (fs_slice){0}, 1, BYTES(REQUEST), &response, &log));
        fs_slice whole = {made, join(&log, made)};
        check_slice(field(field(whole, fields[kind]), 1), BYTES(REQUEST));
        check_slice(field(field(whole, fields[kind]), 2), response);
        check_slice(field(field(whole, 1), 1), BYTES("\x0a\x01m\x12\x02\x08\x03"));
    }
    /* tasks {model_spec {name: "m"}} */
    fs_slice request = BYTES("\x0a\x05\x0a\x03\x0a\x01m");
    CHECK_OK(fs_prediction_log_wrap(FS_LOG_MULTI_INFERENCE, (fs_slice){0}, 1, request, &response, &log));
    fs_slice whole = {made, join(&log, made)};
    check_slice(field(field(whole, 4), 1), request);
    check_slice(field(field(whole, 1), 1), BYTES("\x0a\x01m"));
}

static void test_without_a_response_the_spec_is_the_requests(void)
{
    uint8_t made[200];
    fs_prediction_log log;
    CHECK_OK(fs_prediction_log_wrap(FS_LOG_PREDICT, (fs_slice){0}, 0, BYTES(REQUEST), NULL, &log));
    fs_slice whole = {made, join(&log, made)};
    check_slice(field(field(whole, 1), 1), BYTES("\x0a\x01m"));
    check_slice(field(whole, 6), BYTES("\x0a\x09" REQUEST));
}

static void test_bytes_that_are_no_message_are_kept_all_the_same(void)
{
    static const fs_slice requests[] = {BYTES(""), BYTES("\xff"), BYTES("\x0a\x7f"), BYTES("\x0b\x0b")};
    uint8_t made[200];
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        fs_prediction_log log;
        CHECK_OK(fs_prediction_log_wrap(FS_LOG_PREDICT, (fs_slice){0}, 0, requests[i], &requests[i], &log));
        fs_slice whole = {made, join(&log, made)};
        check_slice(field(field(whole, 6), 1), requests[i]);
        check_slice(field(field(whole, 6), 2), requests[i]);
        CHECK_EQ(field(field(whole, 1), 1).len, 0);
    }
}

static void test_what_no_parser_would_take_is_refused(void)
{
    static const uint8_t one[] = {0}; /* is not looked at beyond its first byte, which is no tag */
    fs_prediction_log log;
    fs_slice most = {one, FS_WIRE_MAX_BYTES}, response = {one, 1};
    CHECK_EQ(fs_prediction_log_wrap(FS_LOG_PREDICT, (fs_slice){0}, 0, most, &response, &log), -FS_OUT_OF_RANGE);
}

int main(void)
{
    test_predict_byte_for_byte();
    test_each_kind_has_its_field();
    test_without_a_response_the_spec_is_the_requests();
    test_bytes_that_are_no_message_are_kept_all_the_same();
    test_what_no_parser_would_take_is_refused();
    return check_done();
}
