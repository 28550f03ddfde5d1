/* test_metrics: the memory that a core counts in: histograms' slots, blocks and their lives, and a reader that trusts
 * nothing in it. What is counted there and when: test_metering. */
#include "metrics.h"

#include "failmalloc.h"
#include "metrics_rig.h"
#include "status.h"

/* ---- histograms ----------------------------------------------------------------------------------- */

static void slots_follow_one_another_and_are_narrow(void)
{
    uint64_t next = 0;
    for (uint32_t slot = 0; slot < FS_TALLY_SLOTS; slot++) {
        uint64_t low = fs_tally_low(slot), high = fs_tally_high(slot);
        CHECK_EQ(low, next);
        CHECK_EQ(fs_tally_slot(low), slot);
        CHECK_EQ(fs_tally_slot(high), slot);
        double middle = ((double)low + (double)high) / 2;
        CHECK((double)high - middle <= 0.01 * (double)high && middle - (double)low <= 0.01 * (double)low);
        next = high + 1;
    }
    CHECK_EQ(next, UINT64_C(1) << FS_TALLY_TOP);
    CHECK_EQ(fs_tally_slot(UINT64_MAX), FS_TALLY_SLOTS - 1);
}

static void a_histogram_is_read_as_it_was_counted(void)
{
    ledger l = ledger_open(1);
    fs_meter *meter = fs_metrics_give(l.metrics, "m", 1, "s");
    static fs_tally_pair pairs[FS_TALLY_SLOTS];
    fs_meter_time(&meter->encode, &meter->encode_sum, 5);
    fs_meter_time(&meter->encode, &meter->encode_sum, 5);
    fs_meter_time(&meter->encode, &meter->encode_sum, 1000000000);
    fs_meter_time(&meter->encode, &meter->encode_sum, -7); /* a clock that was read too early */
    const fs_meter *read = ledger_find(&l, "m", 1, "s", false);
    REQUIRE(read != NULL);
    CHECK_EQ(ledger_count(&l, &read->compute), 0);
    CHECK_EQ(fs_metrics_view_tally(&l.view, &read->encode, pairs), 3);
    CHECK(pairs[0].slot == 0 && pairs[0].n == 1 && pairs[1].slot == 5 && pairs[1].n == 2);
    CHECK(fs_tally_low(pairs[2].slot) <= 1000000000 && fs_tally_high(pairs[2].slot) >= 1000000000);
    CHECK_EQ(fs_tick_read(&read->encode_sum), 1000000010);
    CHECK_EQ(ledger_count(&l, &read->rows), 0);
    ledger_close(&l);
}

/* Every slot of every histogram, whatever page it lies on. */
static void no_slot_is_missed_or_seen_twice(void)
{
    ledger l = ledger_open(1);
    fs_meter *meter = fs_metrics_give(l.metrics, "m", 1, "s");
    const fs_meter *read = ledger_find(&l, "m", 1, "s", false);
    static fs_tally_pair pairs[FS_TALLY_SLOTS];
    fs_tally *tallies[] = {&meter->latency[0][0], &meter->latency[4][2], &meter->queue, &meter->rows};
    const fs_tally *views[] = {&read->latency[0][0], &read->latency[4][2], &read->queue, &read->rows};
    fs_tick sum = 0;
    for (uint32_t slot = 0; slot < FS_TALLY_SLOTS; slot += 97) {
        for (int t = 0; t < 4; t++) {
            fs_tally_add(tallies[t], fs_tally_low(slot), &sum);
            REQUIRE(fs_metrics_view_begin(&l.view) == 0);
            CHECK_EQ(fs_metrics_view_tally(&l.view, views[t], pairs), slot / 97 + 1);
            CHECK_EQ(pairs[slot / 97].slot, slot);
            CHECK_EQ(pairs[slot / 97].n, 1);
        }
    }
    ledger_close(&l);
}

/* Sizes have places as they come, and padding a step for each doubling; what finds no place is not lost. */
static void padding_is_kept_by_size(void)
{
    ledger l = ledger_open(1);
    fs_meter *meter = fs_metrics_give(l.metrics, "m", 1, "s");
    const fs_meter *read = ledger_find(&l, "m", 1, "s", false);
    fs_padding place;
    for (uint32_t i = 0; i < FS_METRICS_SIZES; i++)
        CHECK(!fs_metrics_view_padding(&l.view, read, i, &place));
    static const uint64_t PADDING[] = {0, 1, 2, 3, 4, 5, 8192, 8193};
    static const uint32_t STEP[] = {0, 1, 2, 3, 3, 4, 14, 15};
    for (size_t k = 0; k < sizeof STEP / sizeof STEP[0]; k++)
        fs_meter_padding(meter, 64, PADDING[k]);
    fs_meter_padding(meter, 0, 0);
    for (uint64_t size = 100; size < 100 + FS_METRICS_SIZES; size++) /* two more than there is place for */
        fs_meter_padding(meter, size, 7);
    REQUIRE(fs_metrics_view_begin(&l.view) == 0);
    REQUIRE(fs_metrics_view_padding(&l.view, read, 0, &place));
    CHECK_EQ(fs_tick_read(&place.size), 0);
    CHECK_EQ(fs_tick_read(&place.batches[0]), 1);
    CHECK_EQ(fs_tick_read(&place.batches[4]), 2);
    REQUIRE(fs_metrics_view_padding(&l.view, read, 1, &place));
    CHECK_EQ(fs_tick_read(&place.size), 64);
    CHECK_EQ(fs_tick_read(&place.sum), 0 + 1 + 2 + 3 + 4 + 5 + 8192 + 8193);
    for (size_t k = 0; k < sizeof STEP / sizeof STEP[0]; k++)
        CHECK_EQ(fs_tick_read(&place.batches[STEP[k]]), STEP[k] == 3 ? 2 : 1);
    for (uint32_t i = 2; i < FS_METRICS_SIZES; i++) {
        REQUIRE(fs_metrics_view_padding(&l.view, read, i, &place));
        CHECK_EQ(fs_tick_read(&place.size), 98 + i);
        CHECK_EQ(fs_tick_read(&place.batches[4]), 1);
    }
    ledger_close(&l);
}

/* ---- blocks --------------------------------------------------------------------------------------- */

static void blocks_have_names_and_lives(void)
{
    ledger l = ledger_open(4);
    fs_meter *a = fs_metrics_give(l.metrics, "m", 1, "serving_default");
    fs_meter *b = fs_metrics_give(l.metrics, "m", 2, "serving_default");
    fs_endings_add(&a->requests, 0, 1, FS_OK);
    fs_endings_add(&b->requests, 4, 2, 99); /* no code of gRPC's */
    const fs_meter *first = ledger_find(&l, "m", 1, "serving_default", false);
    const fs_meter *second = ledger_find(&l, "m", 2, "serving_default", false);
    REQUIRE(first != NULL && second != NULL);
    CHECK_EQ(ledger_requests(&first->requests, 0, 1, FS_OK), 1);
    CHECK_EQ(ledger_sum(&first->requests), 1);
    CHECK_EQ(ledger_requests(&second->requests, 4, 2, FS_UNKNOWN), 1);
    CHECK(fs_tick_read(&first->serial) != fs_tick_read(&second->serial));
    fs_metrics_take_back(l.metrics, a);
    CHECK(ledger_find(&l, "m", 1, "serving_default", false) == NULL);
    CHECK(ledger_find(&l, "m", 1, "serving_default", true) == first);
    CHECK_EQ(ledger_sum(&first->requests), 1);
    fs_metrics_unresolved(l.metrics, 3, 0, FS_NOT_FOUND);
    CHECK_EQ(ledger_unresolved(&l, 3, 0, FS_NOT_FOUND), 1);
    ledger_close(&l);
}

static void long_names_are_cut_between_characters(void)
{
    ledger l = ledger_open(1);
    char name[FS_METRICS_NAME + 100] = "", kept[sizeof name] = "";
    memset(name, 'a', FS_METRICS_NAME - 1);
    memcpy(kept, name, sizeof name);
    strcat(name, "\xc3\xa9"); /* which would be cut in two */
    fs_metrics_give(l.metrics, name, 7, name);
    CHECK(ledger_find(&l, kept, 7, kept, false) != NULL);
    ledger_close(&l);
}

static void what_finds_no_block_shares_one(void)
{
    ledger l = ledger_open(2);
    fs_meter *a = fs_metrics_give(l.metrics, "a", 1, "s"), *b = fs_metrics_give(l.metrics, "b", 1, "s");
    fs_meter *c = fs_metrics_give(l.metrics, "c", 1, "s"), *d = fs_metrics_give(l.metrics, "d", 1, "s");
    CHECK(a != b && c == d && c != a && c != b);
    CHECK(ledger_find(&l, "", 0, "", false) != NULL);
    fs_endings_add(&c->requests, 0, 0, FS_OK);
    fs_metrics_take_back(l.metrics, c);
    fs_metrics_take_back(l.metrics, d);
    CHECK_EQ(ledger_sum(&ledger_find(&l, "", 0, "", false)->requests), 1);
    /* A closed one is given up for who comes next. */
    fs_metrics_take_back(l.metrics, b);
    fs_meter *e = fs_metrics_give(l.metrics, "e", 1, "s");
    CHECK(e == b);
    CHECK(ledger_find(&l, "b", 1, "s", true) == NULL && ledger_find(&l, "e", 1, "s", false) != NULL);
    ledger_close(&l);
}

/* The owner of a call counts it when its version may have closed long ago. */
static void a_block_waits_for_calls_on_their_way_home(void)
{
    ledger l = ledger_open(1);
    fs_meter *a = fs_metrics_give(l.metrics, "a", 1, "s");
    fs_meter_pushed(a, 3);
    fs_meter_pushed(a, 1);
    fs_meter_left(a, 2, 4);
    fs_meter_finished(a);
    fs_metrics_take_back(l.metrics, a);
    CHECK(fs_metrics_give(l.metrics, "b", 1, "s") != a);
    fs_endings_add(&a->requests, 0, 0, FS_OK);
    const fs_meter *read = ledger_find(&l, "a", 1, "s", true);
    REQUIRE(read != NULL);
    CHECK_EQ(ledger_sum(&read->requests), 1);
    fs_meter_finished(a);
    CHECK(fs_metrics_give(l.metrics, "b", 1, "s") == a);
    read = ledger_find(&l, "b", 1, "s", false);
    REQUIRE(read != NULL);
    CHECK_EQ(ledger_sum(&read->requests), 0);
    CHECK_EQ(fs_tick_read(&read->pushed_calls), 0);
    ledger_close(&l);
}

/* Of closed ones the latest stay; the memory of the others goes back. */
static void so_many_closed_blocks_stay(void)
{
    enum { MORE = 10 };
    ledger l = ledger_open(FS_METRICS_KEPT + MORE + 5);
    size_t most = 0;
    for (int64_t version = 1; version <= FS_METRICS_KEPT + MORE; version++) {
        fs_meter *meter = fs_metrics_give(l.metrics, "m", version, "s");
        for (int64_t ns = 1000; ns < 2000; ns++)
            fs_meter_time(&meter->queue, &meter->queue_sum, ns);
        fs_metrics_take_back(l.metrics, meter);
        if (version == FS_METRICS_KEPT)
            most = ledger_resident(&l);
    }
    CHECK(ledger_resident(&l) <= most);
    for (int64_t version = 1; version <= FS_METRICS_KEPT + MORE; version++)
        CHECK_EQ(ledger_find(&l, "m", version, "s", true) != NULL, version > MORE);
    ledger_close(&l);
}

/* In a sparse file even a look makes pages, unless one looks before where there are some. */
static void reading_takes_no_memory(void)
{
    ledger l = ledger_open(500);
    for (int64_t version = 1; version <= 20; version++) {
        fs_meter *meter = fs_metrics_give(l.metrics, "m", version, "s");
        fs_meter_time(&meter->compute, &meter->compute_sum, 123456);
    }
    size_t before = ledger_resident(&l);
    CHECK(before < 21 * 16384 + 65536);
    for (int64_t version = 1; version <= 20; version++) {
        const fs_meter *read = ledger_find(&l, "m", version, "s", false);
        REQUIRE(read != NULL);
        CHECK_EQ(ledger_count(&l, &read->latency[0][0]), 0);
        CHECK_EQ(ledger_count(&l, &read->queue), 0);
        CHECK_EQ(ledger_count(&l, &read->compute), 1);
        CHECK_EQ(ledger_count(&l, &read->rows), 0);
        for (uint32_t i = 0; i < FS_METRICS_SIZES; i++)
            CHECK(!fs_metrics_view_padding(&l.view, read, i, &(fs_padding){0}));
    }
    CHECK_EQ(ledger_resident(&l), before);
    ledger_close(&l);
}

/* ---- what is not as it should be ------------------------------------------------------------------- */

static void files_that_are_no_good_are_refused(void)
{
    fs_metrics *metrics;
    fs_metrics_view view;
    int small = ledger_file(FS_METRICS_UNIT);
    CHECK_EQ(fs_metrics_open(small, &metrics), -FS_INVALID_ARGUMENT);
    CHECK_EQ(fs_metrics_view_open(small, &view), -FS_INVALID_ARGUMENT);
    int open_ended = memfd_create("metrics", MFD_CLOEXEC | MFD_ALLOW_SEALING); /* may shrink under its reader */
    REQUIRE(ftruncate(open_ended, 16 << 20) == 0);
    CHECK_EQ(fs_metrics_view_open(open_ended, &view), -FS_INVALID_ARGUMENT);
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    CHECK_EQ(fs_metrics_open(ends[0], &metrics), -FS_INVALID_ARGUMENT);
    CHECK_EQ(fs_metrics_view_open(ends[0], &view), -FS_INVALID_ARGUMENT);
    int fds[] = {small, open_ended, ends[0], ends[1]};
    for (int i = 0; i < 4; i++)
        close(fds[i]);
    CHECK_EQ(fs_metrics_open(-1, &metrics), -FS_INVALID_ARGUMENT);
}

static void before_a_core_has_begun_there_is_nothing(void)
{
    fs_metrics_view view;
    int fd = ledger_file(64 << 20);
    REQUIRE(fs_metrics_view_open(fd, &view) == 0);
    CHECK_OK(fs_metrics_view_begin(&view));
    CHECK_EQ(view.n, 0);
    fs_meter_name name;
    uint32_t i = 0;
    CHECK(fs_metrics_view_next(&view, &i, &name) == NULL);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_blocks == 0);
    fs_metrics_view_close(&view);
    close(fd);
}

/* A head of another layout is refused; a block's numbers are looked at before they are used. */
static void damage_is_no_danger(void)
{
    ledger l = ledger_open(3);
    fs_meter *meter = fs_metrics_give(l.metrics, "m", 1, "s");
    uint8_t *at = mmap(NULL, l.view.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, l.fd, 0);
    REQUIRE(at != MAP_FAILED);
    fs_metrics_head *head = (fs_metrics_head *)(void *)at;
    uint64_t *numbers[] = {&head->layout, &head->meter_bytes, &head->n_meters};
    for (int i = 0; i < 3; i++) {
        uint64_t before = *numbers[i];
        *numbers[i] = UINT64_MAX / 3;
        CHECK_EQ(fs_metrics_view_begin(&l.view), -FS_INVALID_ARGUMENT);
        CHECK_EQ(l.view.n, 0);
        *numbers[i] = before;
    }
    atomic_store(&head->magic, 77);
    CHECK_EQ(fs_metrics_view_begin(&l.view), -FS_INVALID_ARGUMENT);
    atomic_store(&head->magic, FS_METRICS_MAGIC);
    meter->model_len = FS_METRICS_NAME + 1;
    CHECK(ledger_find(&l, "m", 1, "s", false) == NULL);
    meter->model_len = 1;
    meter->signature_len = UINT32_MAX;
    CHECK(ledger_find(&l, "m", 1, "s", false) == NULL);
    meter->signature_len = 1;
    atomic_store(&meter->state, 17);
    CHECK(ledger_find(&l, "m", 1, "s", false) == NULL);
    atomic_store(&meter->state, FS_METER_OPEN);
    CHECK(ledger_find(&l, "m", 1, "s", false) != NULL);
    /* Any bytes at all, and reading still ends. */
    uint64_t random = 1;
    for (int round = 0; round < 50; round++) {
        for (size_t i = FS_METRICS_UNIT; i < l.view.bytes; i += 8) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            *(uint64_t *)(void *)(at + i) = round % 2 == 0 ? random >> 62 : random;
        }
        fs_meter_name name;
        const fs_meter *read;
        REQUIRE(fs_metrics_view_begin(&l.view) == 0);
        for (uint32_t i = 0; (read = fs_metrics_view_next(&l.view, &i, &name)) != NULL; i++) {
            CHECK(i < l.view.n && name.model_len <= FS_METRICS_NAME);
            ledger_count(&l, &read->queue);
        }
    }
    munmap(at, l.view.bytes);
    ledger_close(&l);
}

/* A block that comes to another series while it is read is not taken for the first one. */
static void a_block_that_changes_hands_is_noticed(void)
{
    ledger l = ledger_open(1);
    fs_meter *meter = fs_metrics_give(l.metrics, "a", 1, "s");
    fs_meter_name name;
    uint32_t i = 1;
    REQUIRE(fs_metrics_view_begin(&l.view) == 0);
    const fs_meter *read = fs_metrics_view_next(&l.view, &i, &name);
    REQUIRE(read != NULL && name.model[0] == 'a');
    CHECK(fs_metrics_view_same(read, &name));
    fs_metrics_take_back(l.metrics, meter);
    CHECK(fs_metrics_view_same(read, &name)); /* closed, and its own still */
    CHECK(fs_metrics_give(l.metrics, "b", 1, "s") == meter);
    CHECK(!fs_metrics_view_same(read, &name));
    ledger_close(&l);
}

static void without_memory_there_is_no_counting(void)
{
    int fd = ledger_file(8 << 20);
    for (long n = 1;; n++) {
        fs_metrics *metrics = NULL;
        failmalloc_after(n);
        int rc = fs_metrics_open(fd, &metrics);
        failmalloc_after(-1);
        if (!failmalloc_fired()) {
            CHECK_OK(rc);
            fs_metrics_close(metrics);
            break;
        }
        CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
    }
    fs_metrics_close(NULL);
    close(fd);
}

int main(void)
{
    slots_follow_one_another_and_are_narrow();
    a_histogram_is_read_as_it_was_counted();
    no_slot_is_missed_or_seen_twice();
    padding_is_kept_by_size();
    blocks_have_names_and_lives();
    long_names_are_cut_between_characters();
    what_finds_no_block_shares_one();
    a_block_waits_for_calls_on_their_way_home();
    so_many_closed_blocks_stay();
    reading_takes_no_memory();
    files_that_are_no_good_are_refused();
    before_a_core_has_begun_there_is_nothing();
    damage_is_no_danger();
    a_block_that_changes_hands_is_noticed();
    without_memory_there_is_no_counting();
    return check_done();
}
