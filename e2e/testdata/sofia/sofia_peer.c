/*
 * sofia_peer: a SIP event publisher and watcher over Sofia-SIP's nua, driven by lines on standard input.
 *
 *   sofia_peer AOR SERVER-URI BIND-URI [CERTIFICATES]
 *
 * CERTIFICATES is a folder with cafile.pem, by which servers are verified, and the agent's own agent.pem.
 *
 * Fields of a command are separated by one tab; an empty field is "-"; bodies are base64.
 *
 *   publish      ID URI EVENT CONTENT-TYPE EXPIRES BODY
 *   republish    ID EXPIRES BODY            "-" as BODY refreshes, with one it modifies
 *   unpublish    ID
 *   subscribe    ID URI EVENT ACCEPT SUPPORTED EXPIRES CONTENT-TYPE BODY
 *   resubscribe  ID EXPIRES
 *   unsubscribe  ID
 *   quit
 *
 * Every answer and every NOTIFY is one JSON object on a line of standard output:
 *   {"event":"ready"}  {"event":"published","id":"p1","status":200,"phrase":"OK","raw":"base64 of the message"}
 * with the events ready, published, unpublished, subscribed, unsubscribed, notify, error. "raw" is empty when the stack made the
 * status up by itself (408, 503). NOTIFYs are answered by nua.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct peer;
struct handle;
#define NUA_MAGIC_T struct peer
#define NUA_HMAGIC_T struct handle
#define SU_ROOT_MAGIC_T struct peer

#include <sofia-sip/base64.h>
#include <sofia-sip/msg.h>
#include <sofia-sip/nua.h>
#include <sofia-sip/nua_tag.h>
#include <sofia-sip/sip.h>
#include <sofia-sip/sip_header.h>
#include <sofia-sip/sip_tag.h>
#include <sofia-sip/su_log.h>
#include <sofia-sip/su_tag_io.h>
#include <sofia-sip/tport_tag.h>

struct handle {
    struct handle *next;
    nua_handle_t *nh;
    char *id, *event, *content_type; /* nua forgets a publication's event and type */
};

struct peer {
    su_root_t *root;
    nua_t *nua;
    const char *aor;
    struct handle *handles;
    char *line;
    size_t have, room;
    int closing;
};

static void json_string(const char *s)
{
    putchar('"');
    for (; s && *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void report(const char *event, struct handle *h, int status, const char *phrase, msg_t *msg)
{
    printf("{\"event\":\"%s\",\"id\":", event);
    json_string(h ? h->id : "");
    printf(",\"status\":%d,\"phrase\":", status);
    json_string(phrase);
    printf(",\"raw\":\"");
    if (msg) {
        su_home_t home[1] = {SU_HOME_INIT(home)};
        size_t len = 0;
        char *raw = msg_as_string(home, msg, NULL, 0, &len);
        if (raw) {
            size_t size = BASE64_SIZE(len) + 1;
            char *b64 = malloc(size);
            base64_e(b64, size, raw, len);
            fputs(b64, stdout);
            free(b64);
        }
        su_home_deinit(home);
    }
    printf("\"}\n");
    fflush(stdout);
}

static void callback(nua_event_t event, int status, char const *phrase, nua_t *nua, struct peer *p,
                     nua_handle_t *nh, struct handle *h, sip_t const *sip, tagi_t tags[])
{
    msg_t *msg = sip ? nua_current_request(nua) : NULL;
    (void)nh;
    (void)tags;
    switch (event) {
    case nua_r_publish:
        report("published", h, status, phrase, msg);
        break;
    case nua_r_unpublish:
        report("unpublished", h, status, phrase, msg);
        break;
    case nua_r_subscribe:
        report("subscribed", h, status, phrase, msg);
        break;
    case nua_r_unsubscribe:
        report("unsubscribed", h, status, phrase, msg);
        break;
    case nua_i_notify:
        report("notify", h, status, phrase, msg);
        break;
    case nua_r_shutdown:
        if (status >= 200)
            su_root_break(p->root);
        break;
    default:
        fprintf(stderr, "%s %d %s\n", nua_event_name(event), status, phrase ? phrase : "");
    }
}

static struct handle *find(struct peer *p, const char *id)
{
    struct handle *h;
    for (h = p->handles; h; h = h->next)
        if (strcmp(h->id, id) == 0)
            return h;
    return NULL;
}

static struct handle *add(struct peer *p, const char *id, const char *uri)
{
    struct handle *h = calloc(1, sizeof *h);
    h->id = strdup(id);
    h->nh = nua_handle(p->nua, h, NUTAG_URL(uri), SIPTAG_TO_STR(uri), SIPTAG_FROM_STR(p->aor), TAG_END());
    h->next = p->handles;
    p->handles = h;
    return h;
}

/* The caller's tag list copies the payload, so it may be freed when the nua call has returned. */
static sip_payload_t *payload(su_home_t *home, const char *b64)
{
    size_t size;
    char *data;
    if (!b64)
        return NULL;
    size = strlen(b64) + 1;
    data = su_zalloc(home, size);
    return sip_payload_create(home, data, base64_d(data, size, b64));
}

static void command(struct peer *p, char *line)
{
    enum { FIELDS = 9 };
    char *f[FIELDS] = {0};
    int n = 0;
    struct handle *h;
    su_home_t home[1] = {SU_HOME_INIT(home)};

    while (line && n < FIELDS) {
        char *s = strsep(&line, "\t");
        f[n++] = strcmp(s, "-") == 0 ? NULL : s;
    }
    if (!f[0])
        return;
    if (strcmp(f[0], "quit") == 0) {
        if (!p->closing)
            nua_shutdown(p->nua);
        p->closing = 1;
        return;
    }
    h = f[1] ? find(p, f[1]) : NULL;
    if (strcmp(f[0], "publish") == 0 && n == 7 && !h && f[1] && f[2]) {
        h = add(p, f[1], f[2]);
        h->event = f[3] ? strdup(f[3]) : NULL;
        h->content_type = f[4] ? strdup(f[4]) : NULL;
        nua_publish(h->nh, TAG_IF(f[3], SIPTAG_EVENT_STR(f[3])), TAG_IF(f[4], SIPTAG_CONTENT_TYPE_STR(f[4])),
                    TAG_IF(f[5], SIPTAG_EXPIRES_STR(f[5])), TAG_IF(f[6], SIPTAG_PAYLOAD(payload(home, f[6]))), TAG_END());
    } else if (strcmp(f[0], "republish") == 0 && n == 4 && h) {
        nua_publish(h->nh, TAG_IF(h->event, SIPTAG_EVENT_STR(h->event)), TAG_IF(f[2], SIPTAG_EXPIRES_STR(f[2])),
                    TAG_IF(f[3] && h->content_type, SIPTAG_CONTENT_TYPE_STR(h->content_type)),
                    TAG_IF(f[3], SIPTAG_PAYLOAD(payload(home, f[3]))), TAG_END());
    } else if (strcmp(f[0], "unpublish") == 0 && n == 2 && h) {
        nua_unpublish(h->nh, TAG_IF(h->event, SIPTAG_EVENT_STR(h->event)), TAG_END());
    } else if (strcmp(f[0], "subscribe") == 0 && n == 9 && !h && f[1] && f[2]) {
        h = add(p, f[1], f[2]);
        nua_subscribe(h->nh, TAG_IF(f[3], SIPTAG_EVENT_STR(f[3])), TAG_IF(f[4], SIPTAG_ACCEPT_STR(f[4])),
                      TAG_IF(f[5], SIPTAG_SUPPORTED_STR(f[5])), TAG_IF(f[6], SIPTAG_EXPIRES_STR(f[6])),
                      TAG_IF(f[7], SIPTAG_CONTENT_TYPE_STR(f[7])), TAG_IF(f[8], SIPTAG_PAYLOAD(payload(home, f[8]))), TAG_END());
    } else if (strcmp(f[0], "resubscribe") == 0 && n == 3 && h) {
        nua_subscribe(h->nh, TAG_IF(f[2], SIPTAG_EXPIRES_STR(f[2])), TAG_END());
    } else if (strcmp(f[0], "unsubscribe") == 0 && n == 2 && h) {
        nua_unsubscribe(h->nh, TAG_END());
    } else {
        report("error", h, 0, f[0], NULL);
    }
    su_home_deinit(home);
}

static int readable(struct peer *p, su_wait_t *w, su_wakeup_arg_t *arg)
{
    ssize_t n;
    char *end;
    (void)w;
    (void)arg;
    if (p->room - p->have < 65536) {
        p->room = p->have + 131072;
        p->line = realloc(p->line, p->room);
    }
    n = read(0, p->line + p->have, p->room - p->have);
    if (n <= 0) { /* the test is gone */
        exit(0);
    }
    p->have += (size_t)n;
    while ((end = memchr(p->line, '\n', p->have))) {
        size_t used = (size_t)(end - p->line) + 1;
        *end = 0;
        command(p, p->line);
        memmove(p->line, p->line + used, p->have - used);
        p->have -= used;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static struct peer p[1]; /* zeroed */
    su_wait_t w[1];

    const char *certificates;

    if (argc != 4 && argc != 5) {
        fprintf(stderr, "usage: sofia_peer AOR SERVER-URI BIND-URI [CERTIFICATES]\n");
        return 2;
    }
    certificates = argc == 5 ? argv[4] : NULL;
    su_init();
    p->aor = argv[1];
    p->root = su_root_create(p);
    p->nua = nua_create(p->root, callback, p, NUTAG_URL(argv[3]), NUTAG_PROXY(argv[2]), SIPTAG_FROM_STR(argv[1]),
                        SIPTAG_USER_AGENT_STR("sofia-peer"), NUTAG_ENABLEINVITE(0),
                        TAG_IF(certificates, NUTAG_CERTIFICATE_DIR(certificates)),
                        TAG_IF(certificates, TPTAG_TLS_VERIFY_POLICY(TPTLS_VERIFY_ALL)), TAG_END());
    if (!p->nua) {
        fprintf(stderr, "cannot bind %s\n", argv[3]);
        return 1;
    }
    if (su_wait_create(w, 0, SU_WAIT_IN) < 0 || su_root_register(p->root, w, readable, NULL, 0) < 0) {
        fprintf(stderr, "cannot wait for standard input\n");
        return 1;
    }
    report("ready", NULL, 0, "", NULL);
    su_root_run(p->root);
    return 0;
}
