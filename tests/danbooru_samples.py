"""One line of each form of a Danbooru dump, and what a reader must make of it.

Written by hand after the public descriptions (see nbs/danbooru/synthetic_posts.ipynb) with invented values. Readers are
tested with these, not only with lines of our own generator."""

from datetime import datetime

# 2017 to 2020: BigQuery's export; all numbers are strings, none is "0", never is 1970
# the second post repeats a tag; pools are flattened
OLD = (
    '{"id":"263162","created_at":"2008-06-10 03:08:07.34205 UTC","uploader_id":"65792","score":"1","source":"",'
    '"md5":"9a0f9e0f08907d12b7d08e46047ae4d8",'
    '"last_commented_at":"1970-01-01 00:00:00 UTC","rating":"s","image_width":"797","image_height":"794",'
    '"is_note_locked":false,"file_ext":"jpg",'
    '"last_noted_at":"1970-01-01 00:00:00 UTC","is_rating_locked":false,"parent_id":"0","has_children":false,'
    '"approver_id":"1309","file_size":"110256",'
    '"is_status_locked":false,"up_score":"1","down_score":"0","is_pending":false,"is_flagged":false,"is_deleted":false,'
    '"updated_at":"2016-04-23 14:32:09.52181 UTC","is_banned":false,"pixiv_id":"0","tags":[{"id":"470575",'
    '"name":"1girl","category":"0"},'
    '{"id":"395796","name":"some_painter","category":"1"},{"id":"576631","name":"larva_(some_series)","category":"4"},'
    '{"id":"13197","name":"long_hair","category":"0"},{"id":"15189","name":"some_series","category":"3"}],'
    '"pools":[],"favs":["15115","159766","23892"]}',
    '{"id":"931532","created_at":"2011-06-09 18:30:00 UTC","uploader_id":"12","score":"-3",'
    '"source":"http://example.org/a?b\\u003d1\\u0026c\\u003d2",'
    '"md5":"00112233445566778899aabbccddeeff","last_commented_at":"2011-06-10 01:02:03.5 UTC","rating":"e",'
    '"image_width":"2000","image_height":"1000",'
    '"is_note_locked":true,"file_ext":"png","last_noted_at":"2011-06-10 01:02:03 UTC","is_rating_locked":true,'
    '"parent_id":"66036","has_children":true,'
    '"approver_id":"0","file_size":"4527472","is_status_locked":false,"up_score":"1","down_score":"-4",'
    '"is_pending":false,"is_flagged":false,'
    '"is_deleted":true,"updated_at":"2017-12-31 23:59:59.999999 UTC","is_banned":false,"pixiv_id":"19551322",'
    '"tags":[{"id":"535673","name":"solo","category":"0"},{"id":"535673","name":"solo","category":"0"},{"id":"1",'
    '"name":"\\\\m/","category":"0"},'
    '{"id":"2","name":"^_^","category":"0"},{"id":"3","name":"highres","category":"5"}],"pools":["10152","4162",'
    '"series","collection"],"favs":[]}',
)

# 2021: one line as exported (numbers are strings, what is null has no key)
# and one as the site's API gives it (numbers are numbers, null is null)
NEW = (
    '{"id":"4983210","created_at":"2021-12-21 13:02:04.132 UTC","uploader_id":"351189","score":"10",'
    '"source":"https://example.org/1",'
    '"md5":"cd91f0000b9574bf142d125a1e886e5c","rating":"g","image_width":"2000","image_height":"2828",'
    '"file_ext":"png","fav_count":"10",'
    '"has_children":false,"file_size":"4527472","up_score":"11","down_score":"-1","is_pending":false,'
    '"is_flagged":false,"is_deleted":false,'
    '"updated_at":"2021-12-30 11:22:33 UTC","is_banned":false,"pixiv_id":"83599609","bit_flags":"0",'
    '"has_active_children":false,"has_visible_children":false,'
    '"has_large":true,"tag_count":"6","tag_count_general":"2","tag_count_artist":"1","tag_count_copyright":"1",'
    '"tag_count_character":"1","tag_count_meta":"1",'
    '"tag_string":"1girl a_painter a_series highres long_hair nekone_(a_series)","tag_string_general":"1girl '
    'long_hair","tag_string_artist":"a_painter",'
    '"tag_string_copyright":"a_series","tag_string_character":"nekone_(a_series)","tag_string_meta":"highres"}',
    '{"id":6285839,"created_at":"2023-05-06T10:40:45.524-04:00","uploader_id":748553,"score":152,'
    '"source":"https://example.org/2",'
    '"md5":"76823069dd2cb8f77345cc795c2e229a","last_comment_bumped_at":null,"rating":"s","image_width":500,'
    '"image_height":600,"tag_string":"^_^ cat solo",'
    '"fav_count":7,"file_ext":"jpg","last_noted_at":null,"parent_id":null,"has_children":false,'
    '"approver_id":null,"tag_count_general":3,"tag_count_artist":0,'
    '"tag_count_character":0,"tag_count_copyright":0,"file_size":237334,"up_score":152,"down_score":0,'
    '"is_pending":true,"is_flagged":true,"is_deleted":false,'
    '"tag_count":3,"updated_at":"2025-09-15T22:22:56.926-04:00","is_banned":true,"pixiv_id":null,'
    '"last_commented_at":null,"has_active_children":false,'
    '"bit_flags":0,"tag_count_meta":0,"has_large":false,"has_visible_children":false,"media_asset":{"id":1,'
    '"variants":[{"type":"original","width":500}]},'
    '"tag_string_general":"^_^ cat solo","tag_string_character":"","tag_string_copyright":"",'
    '"tag_string_artist":"","tag_string_meta":"",'
    '"file_url":"https://example.org/2.jpg","large_file_url":"https://example.org/2.jpg",'
    '"preview_file_url":"https://example.org/2.jpg"}',
)

FLAGS = ("is_deleted", "is_banned", "is_flagged", "is_pending")


def _row(
    id,
    made,
    md5,
    ext,
    rating,
    width,
    height,
    bytes,
    score,
    up,
    down,
    parent,
    pixiv,
    flags,
    general,
    character,
    copyright,
    artist,
    meta,
):
    return {
        "id": id,
        "created_at": made,
        "md5": md5,
        "ext": ext,
        "rating": rating,
        "width": width,
        "height": height,
        "bytes": bytes,
        "score": score,
        "up_score": up,
        "down_score": down,
        "parent_id": parent,
        "pixiv_id": pixiv,
        **{flag: flag in flags for flag in FLAGS},
        "general": general,
        "character": character,
        "copyright": copyright,
        "artist": artist,
        "meta": meta,
    }


# in the columns of the table of posts; times in UTC
OLD_ROWS = (
    _row(
        263162,
        datetime(2008, 6, 10, 3, 8, 7, 342050),
        "9a0f9e0f08907d12b7d08e46047ae4d8",
        "jpg",
        "general",
        797,
        794,
        110256,
        1,
        1,
        0,
        None,
        None,
        (),
        ["1girl", "long_hair"],
        ["larva_(some_series)"],
        ["some_series"],
        ["some_painter"],
        [],
    ),
    _row(
        931532,
        datetime(2011, 6, 9, 18, 30),
        "00112233445566778899aabbccddeeff",
        "png",
        "explicit",
        2000,
        1000,
        4527472,
        -3,
        1,
        -4,
        66036,
        19551322,
        ("is_deleted",),
        ["solo", "\\m/", "^_^"],
        [],
        [],
        [],
        ["highres"],
    ),
)
NEW_ROWS = (
    _row(
        4983210,
        datetime(2021, 12, 21, 13, 2, 4, 132000),
        "cd91f0000b9574bf142d125a1e886e5c",
        "png",
        "general",
        2000,
        2828,
        4527472,
        10,
        11,
        -1,
        None,
        83599609,
        (),
        ["1girl", "long_hair"],
        ["nekone_(a_series)"],
        ["a_series"],
        ["a_painter"],
        ["highres"],
    ),
    _row(
        6285839,
        datetime(2023, 5, 6, 14, 40, 45, 524000),
        "76823069dd2cb8f77345cc795c2e229a",
        "jpg",
        "sensitive",
        500,
        600,
        237334,
        152,
        152,
        0,
        None,
        None,
        ("is_banned", "is_flagged", "is_pending"),
        ["^_^", "cat", "solo"],
        [],
        [],
        [],
        [],
    ),
)
