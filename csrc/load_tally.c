/* load_tally: see load_tally.h. */
#include "load_tally.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FIRST_INTERVALS = 1024 };

static int64_t thread_cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int fs_load_tally_open(fs_load_tally *tally, uint32_t n_bodies, int64_t interval_ns, uint64_t max_records)
{
    tally->interval_ns = interval_ns;
    tally->edge_ns = INT64_MAX;
    tally->to_ns = INT64_MAX;
    fs_hist_clear(&tally->result.latency);
    fs_hist_clear(&tally->result.behind);
    fs_hist_clear(&tally->interval_hist);
    tally->result.done_by_body = calloc(n_bodies, sizeof *tally->result.done_by_body);
    if (tally->result.done_by_body == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    if (max_records > 0) {
        if (max_records > SIZE_MAX / sizeof *tally->records)
            return -FS_RESOURCE_EXHAUSTED;
        tally->records = malloc(max_records * sizeof *tally->records);
        if (tally->records == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        /* The kernel hands pages out as they are touched: now, and not while times are taken. */
        memset(tally->records, 0xff, max_records * sizeof *tally->records);
        tally->max_records = max_records;
        tally->result.records = tally->records;
    }
    return 0;
}

void fs_load_tally_free(fs_load_tally *tally)
{
    free(tally->records);
    free(tally->result.intervals);
    free(tally->result.done_by_body);
}

/* ---- the window -------------------------------------------------------------------------------------- */

void fs_load_tally_begin(fs_load_tally *tally, int64_t from_ns, int64_t to_ns)
{
    tally->from_ns = from_ns;
    tally->to_ns = to_ns;
    tally->edge_ns = from_ns;
}

static bool make_room(fs_load_tally *tally)
{
    if (tally->result.n_intervals < tally->interval_room)
        return true;
    uint32_t room = tally->interval_room > 0 ? tally->interval_room * 2 : FIRST_INTERVALS;
    fs_load_interval *grown = realloc(tally->result.intervals, room * sizeof *grown);
    if (grown == NULL)
        return false;
    tally->result.intervals = grown;
    tally->interval_room = room;
    return true;
}

static void end_interval(fs_load_tally *tally, int64_t at_ns)
{
    static const double quantiles[] = {0.5, 0.9, 0.99};
    fs_load_interval *interval = &tally->interval;
    if (make_room(tally)) { /* else it is missing: the counts of the whole are not concerned */
        uint64_t values[3];
        fs_hist_values_at(&tally->interval_hist, quantiles, values, 3);
        interval->p50_ns = values[0];
        interval->p90_ns = values[1];
        interval->p99_ns = values[2];
        interval->max_ns = tally->interval_hist.max;
        tally->result.intervals[tally->result.n_intervals++] = *interval;
    }
    fs_hist_reset(&tally->interval_hist);
    *interval = (fs_load_interval){.start_ns = at_ns - tally->from_ns};
}

static void begin_window(fs_load_tally *tally)
{
    tally->window = FS_WINDOW_INSIDE;
    tally->cpu_before_ns = thread_cpu_ns();
    tally->moved_before = tally->moved;
    tally->last_answer_ns = tally->from_ns;
}

static void end_window(fs_load_tally *tally, int64_t at_ns)
{
    fs_load_result *result = &tally->result;
    if (tally->interval_ns > 0 && at_ns > tally->from_ns + tally->interval.start_ns)
        end_interval(tally, at_ns);
    tally->window = FS_WINDOW_AFTER;
    tally->edge_ns = INT64_MAX;
    result->window_ns = at_ns - tally->from_ns;
    /* Those that have passed since the last answer, when that ends the window: nothing happened in them. */
    while (result->n_intervals > 0 && result->intervals[result->n_intervals - 1].start_ns >= result->window_ns)
        result->n_intervals--;
    result->cpu_ns = thread_cpu_ns() - tally->cpu_before_ns;
    result->bytes_in = tally->moved.in - tally->moved_before.in;
    result->bytes_out = tally->moved.out - tally->moved_before.out;
}

static void set_edge(fs_load_tally *tally)
{
    tally->edge_ns = tally->to_ns;
    if (tally->interval_ns > 0) {
        int64_t end_ns = tally->from_ns + tally->interval.start_ns + tally->interval_ns;
        tally->edge_ns = end_ns < tally->edge_ns ? end_ns : tally->edge_ns;
    }
}

void fs_load_tally_pass(fs_load_tally *tally, int64_t at_ns)
{
    while (at_ns >= tally->edge_ns) {
        if (tally->window == FS_WINDOW_BEFORE) {
            begin_window(tally);
            set_edge(tally);
        } else if (tally->edge_ns == tally->to_ns) {
            end_window(tally, tally->to_ns);
        } else {
            end_interval(tally, tally->edge_ns);
            set_edge(tally);
        }
    }
}

void fs_load_tally_close(fs_load_tally *tally, bool cut_short, int64_t at_ns)
{
    if (tally->window == FS_WINDOW_INSIDE)
        end_window(tally, cut_short ? at_ns : tally->last_answer_ns);
}

/* ---- what became of requests --------------------------------------------------------------------------- */

void fs_load_tally_sent(fs_load_tally *tally, bool measured)
{
    tally->sent++;
    tally->result.sent += measured;
    if (tally->window == FS_WINDOW_INSIDE)
        tally->interval.sent++;
}

void fs_load_tally_note(fs_load_tally *tally, int failure, const fs_error *error)
{
    fs_error *first = &tally->result.first_error;
    if (first->code != 0)
        return;
    *first = error != NULL ? *error : (fs_error){0};
    first->code = failure;
}

static void count_failed(fs_load_tally *tally, bool measured, int failure, const fs_error *error)
{
    tally->failed++;
    fs_load_tally_note(tally, failure, error);
    if (tally->window == FS_WINDOW_INSIDE)
        tally->interval.failed++;
    if (measured)
        tally->result.failed[failure]++;
}

static void record(fs_load_tally *tally, const fs_load_outcome *outcome, uint64_t took_ns)
{
    fs_load_result *result = &tally->result;
    if (result->n_records == tally->max_records) {
        result->unrecorded += tally->max_records > 0;
        return;
    }
    tally->records[result->n_records++] = (fs_load_record){
        .due_ns = outcome->since_ns,
        .took_ns = (int64_t)took_ns,
        .version = outcome->version <= INT32_MAX ? (int32_t)outcome->version : -1,
        .failure = outcome->failure,
    };
}

void fs_load_tally_ended(fs_load_tally *tally, const fs_load_outcome *outcome)
{
    fs_load_result *result = &tally->result;
    int64_t at_ns = outcome->at_ns;
    uint64_t took_ns = at_ns > outcome->since_ns ? (uint64_t)(at_ns - outcome->since_ns) : 0;
    fs_load_tally_advance(tally, at_ns);
    if (tally->window == FS_WINDOW_INSIDE) {
        /* It counts for the interval of now, which may have begun a moment after it came. */
        int64_t began_ns = tally->from_ns + tally->interval.start_ns;
        tally->last_answer_ns = at_ns > began_ns ? at_ns : began_ns + 1;
    }
    if (outcome->measured)
        record(tally, outcome, took_ns);
    if (outcome->failure != 0) {
        count_failed(tally, outcome->measured, outcome->failure, outcome->error);
        return;
    }
    tally->done++;
    if (tally->window == FS_WINDOW_INSIDE) {
        result->arrived++;
        tally->interval.done++;
        fs_hist_record(&tally->interval_hist, took_ns);
    }
    if (outcome->measured) {
        result->done++;
        result->done_by_body[outcome->body]++;
        fs_hist_record(&result->latency, took_ns);
    }
}
