// Texts of the page, one table per language. {name} is replaced; _one and _other are plural forms.
export const STRINGS = {
  "en": {
    "title": "Person search",
    "gallery_summary": "{count} pictures · {cameras} cameras",
    "gallery_until": "last picture {time}",
    "language": "Language",
    "theme_auto": "Colours: as the system",
    "theme_light": "Colours: light",
    "theme_dark": "Colours: dark",
    "forget_token": "Forget token",
    "skip": "Skip to the results",

    "who": "Who are you looking for?",
    "drop": "Drop pictures of one person here, or paste them",
    "drop_hint": "Each picture should show one person, cropped from head to feet. Several pictures of the same person find more.",
    "choose": "Choose pictures",
    "camera_button": "Take a picture",
    "query_pictures": "Pictures to search with",
    "query_picture": "Picture {n}",
    "from_gallery": "from the gallery",
    "remove_picture": "Remove picture {n}",
    "clear": "Clear all",
    "not_an_image": "“{name}” is not a picture.",
    "no_image_pasted": "The clipboard contains no picture.",

    "filters": "Where and when",
    "cameras": "Cameras",
    "cameras_text": "Cameras, separated by commas",
    "from": "From",
    "to": "Until",
    "zone": "Your time zone: {zone}",
    "display": "Results",
    "group_by": "Group by",
    "group_track": "track",
    "group_camera": "camera",
    "group_pid": "person",
    "group_none": "nothing",
    "top_k": "How many",
    "threshold": "Threshold",
    "threshold_hint": "Least score of a likely match",
    "more": "More options",
    "where": "Filter",
    "where_hint": "over any column, such as camera like 'hall%'",
    "rerank": "Re-rank by common neighbours (slower)",
    "search": "Search",
    "bad_times": "“From” is later than “Until”.",

    "confirmed": "Confirmed: {n}",
    "confirmed_hint": "The search uses these pictures too.",
    "undo_confirm": "Take back",
    "rejected": "Hidden as another person: {n}",
    "show_rejected": "Show again",

    "notice": "Use with care",
    "notice_short": "Results are suggestions of a model that makes mistakes. Look at the pictures yourself, and never act on a score alone.",
    "notice_long": "Search for a person only if the law and your organisation allow it, and for the purpose that the pictures were recorded for. Similar clothes make different people look alike; a change of clothes hides the same person. The server records who searched, not the pictures.",

    "empty_title": "Find where and when a person was seen",
    "empty_1": "Add one or more pictures of the person.",
    "empty_2": "Narrow the search by camera and time.",
    "empty_3": "Compare the results with your pictures. Confirm the right ones: the search then finds more.",
    "searching": "Searching…",
    "summary_matches_one": "{n} picture",
    "summary_matches_other": "{n} pictures",
    "summary_track_one": "in {n} track",
    "summary_track_other": "in {n} tracks",
    "summary_camera_one": "from {n} camera",
    "summary_camera_other": "from {n} cameras",
    "summary_pid_one": "of {n} person",
    "summary_pid_other": "of {n} persons",
    "summary_best": "best score {score}",
    "score_meaning": "The score says how similar two pictures look to the model: 1 is identical, 0 unrelated. It is not the probability that they show the same person.",
    "no_results": "No picture in the gallery fits the filters.",
    "nobody": "Nobody above the threshold",
    "nobody_detail": "No picture reaches the score {threshold}; the most similar one has {best}. The person is probably not in the pictures searched.",
    "threshold_line": "Threshold {threshold}: pictures below probably show other people",
    "below_count_one": "{n} picture below the threshold",
    "below_count_other": "{n} pictures below the threshold",
    "nobody_else": "Nobody else above the threshold",
    "summary_confirmed": "{n} confirmed",
    "no_model": "This server has no model that embeds pictures, so it cannot search with pictures.",
    "no_threshold": "No threshold is set, so these are simply the most similar pictures: the person may not be among them.",
    "no_tracks": "These pictures have no tracks, so each is shown by itself.",

    "timeline": "Sightings by camera and time",
    "timeline_label": "Sightings from {from} to {to}. Arrow keys move between them, Enter compares.",
    "mark_above": "at or above the threshold",
    "mark_result": "a result",
    "mark_below": "below the threshold",
    "mark_confirmed": "confirmed",
    "untimed_one": "{n} picture has no time.",
    "untimed_other": "{n} pictures have no time.",

    "camera": "camera {value}",
    "camera_unknown": "unknown camera",
    "track": "track {value}",
    "track_unknown": "no track",
    "person": "person {value}",
    "person_unknown": "no label",
    "time_unknown": "time unknown",
    "below": "below threshold",
    "score": "Score {score}",
    "card": "Result {rank}: score {score}, {details}. Compare",
    "no_thumbnail": "no picture stored",
    "is_person": "This is the person",
    "not_person": "Not the person",
    "add_query": "Search with this one too",
    "in_query": "In the search",
    "label": "Label…",
    "erase": "Erase…",
    "explain": "Explain the match",
    "group_actions": "All pictures of this group",

    "compare": "Compare",
    "compare_query": "You are looking for",
    "compare_match": "Result {rank} of {count}",
    "above_line": "At or above the threshold {threshold}: a likely match. Check it yourself.",
    "below_line": "Below the threshold {threshold}: probably another person.",
    "previous": "Previous",
    "next": "Next",
    "close": "Close",
    "cancel": "Cancel",
    "column_score": "Score",
    "column_camera": "Camera",
    "column_time": "Time",
    "column_track": "Track",
    "column_pid": "Person",
    "column_path": "File",
    "unknown": "unknown",

    "explain_title": "What the model compares",
    "explain_note": "Bright places make the two pictures similar to the model. Dark ones are unused, or make them less similar.",
    "explain_wait": "Computing the maps…",
    "explain_query": "Your picture",
    "explain_match": "The result",

    "label_title": "Label as a person",
    "label_name": "Person (number or name)",
    "label_save": "Save label",
    "labelled_one": "{n} picture labelled.",
    "labelled_other": "{n} pictures labelled.",
    "scope": "Which pictures",
    "scope_one": "only this picture",
    "scope_track": "all pictures of track {track}, camera {camera}",
    "scope_pid": "all pictures of person {pid}",
    "erase_title": "Erase from the gallery",
    "erase_warning": "The pictures and their features are deleted for good. This cannot be undone.",
    "erase_now": "Erase",
    "erased_one": "{n} picture erased.",
    "erased_other": "{n} pictures erased.",

    "capture_title": "Take a picture",
    "capture_hint": "Stand so that the whole person is in the frame.",
    "capture": "Take picture",
    "capture_failed": "The camera cannot be used: {detail}",

    "token_title": "Token needed",
    "token_text": "This server asks for a token. Your administrator gives you one. It is kept until you close this tab.",
    "token_wrong": "The server does not accept this token.",
    "token_field": "Token",
    "token_send": "Continue",

    "error": "This did not work",
    "error_network": "The server does not answer.",
    "error_token": "A token is needed.",
    "dismiss": "Dismiss"
  },
  "zh": {
    "title": "行人检索",
    "gallery_summary": "{count} 张图片 · {cameras} 个摄像头",
    "gallery_until": "最新图片 {time}",
    "language": "语言",
    "theme_auto": "配色：跟随系统",
    "theme_light": "配色：浅色",
    "theme_dark": "配色：深色",
    "forget_token": "清除令牌",
    "skip": "跳到检索结果",

    "who": "您要找谁？",
    "drop": "将同一个人的图片拖到此处，或直接粘贴",
    "drop_hint": "每张图片应只含一个人，从头到脚裁剪。同一个人的多张图片能找到更多结果。",
    "choose": "选择图片",
    "camera_button": "拍照",
    "query_pictures": "用于检索的图片",
    "query_picture": "图片 {n}",
    "from_gallery": "来自图库",
    "remove_picture": "移除图片 {n}",
    "clear": "全部清除",
    "not_an_image": "“{name}”不是图片。",
    "no_image_pasted": "剪贴板中没有图片。",

    "filters": "地点与时间",
    "cameras": "摄像头",
    "cameras_text": "摄像头，用逗号分隔",
    "from": "从",
    "to": "到",
    "zone": "您的时区：{zone}",
    "display": "结果",
    "group_by": "分组",
    "group_track": "按轨迹",
    "group_camera": "按摄像头",
    "group_pid": "按人物",
    "group_none": "不分组",
    "top_k": "数量",
    "threshold": "阈值",
    "threshold_hint": "可能匹配的最低分数",
    "more": "更多选项",
    "where": "筛选条件",
    "where_hint": "可用任意列，例如 camera like 'hall%'",
    "rerank": "按共同近邻重新排序（较慢）",
    "search": "检索",
    "bad_times": "起始时间晚于结束时间。",

    "confirmed": "已确认：{n}",
    "confirmed_hint": "检索也会使用这些图片。",
    "undo_confirm": "撤销",
    "rejected": "已隐藏（他人）：{n}",
    "show_rejected": "重新显示",

    "notice": "谨慎使用",
    "notice_short": "结果只是模型的建议，模型会出错。请亲自查看图片，切勿仅凭分数采取行动。",
    "notice_long": "仅在法律和所在机构允许、且符合图片采集目的时检索他人。衣着相似会使不同的人看起来相像；更换衣着会使同一个人难以识别。服务器会记录由谁检索，但不记录图片。",

    "empty_title": "查找某人在何时何地出现过",
    "empty_1": "添加此人的一张或多张图片。",
    "empty_2": "按摄像头和时间缩小范围。",
    "empty_3": "将结果与您的图片比较，并确认正确的结果，之后能找到更多。",
    "searching": "正在检索…",
    "summary_matches_one": "{n} 张图片",
    "summary_matches_other": "{n} 张图片",
    "summary_track_one": "{n} 条轨迹",
    "summary_track_other": "{n} 条轨迹",
    "summary_camera_one": "{n} 个摄像头",
    "summary_camera_other": "{n} 个摄像头",
    "summary_pid_one": "{n} 个人物",
    "summary_pid_other": "{n} 个人物",
    "summary_best": "最高分 {score}",
    "score_meaning": "分数表示模型认为两张图片有多相似：1 为完全相同，0 为无关。它不是两张图片为同一人的概率。",
    "no_results": "图库中没有符合筛选条件的图片。",
    "nobody": "没有人达到阈值",
    "nobody_detail": "没有图片达到 {threshold} 分，最相似的一张为 {best} 分。此人很可能不在所检索的图片中。",
    "threshold_line": "阈值 {threshold}：以下图片很可能是其他人",
    "below_count_one": "低于阈值的图片：{n} 张",
    "below_count_other": "低于阈值的图片：{n} 张",
    "nobody_else": "没有其他人达到阈值",
    "summary_confirmed": "已确认 {n} 张",
    "no_model": "此服务器没有可提取图片特征的模型，无法用图片检索。",
    "no_threshold": "未设置阈值，因此这里只是最相似的图片，此人可能不在其中。",
    "no_tracks": "这些图片没有轨迹信息，因此逐张显示。",

    "timeline": "各摄像头的出现时间",
    "timeline_label": "从 {from} 到 {to} 的出现记录。用方向键移动，按回车键比较。",
    "mark_above": "达到阈值",
    "mark_result": "结果",
    "mark_below": "低于阈值",
    "mark_confirmed": "已确认",
    "untimed_one": "{n} 张图片没有时间。",
    "untimed_other": "{n} 张图片没有时间。",

    "camera": "摄像头 {value}",
    "camera_unknown": "摄像头未知",
    "track": "轨迹 {value}",
    "track_unknown": "无轨迹",
    "person": "人物 {value}",
    "person_unknown": "无标签",
    "time_unknown": "时间未知",
    "below": "低于阈值",
    "score": "分数 {score}",
    "card": "结果 {rank}：分数 {score}，{details}。比较",
    "no_thumbnail": "未存储图片",
    "is_person": "是此人",
    "not_person": "不是此人",
    "add_query": "也用这张检索",
    "in_query": "已用于检索",
    "label": "标注…",
    "erase": "删除…",
    "explain": "解释匹配",
    "group_actions": "本组全部图片",

    "compare": "比较",
    "compare_query": "您要找的人",
    "compare_match": "结果 {rank}/{count}",
    "above_line": "达到阈值 {threshold}：可能匹配，请亲自核对。",
    "below_line": "低于阈值 {threshold}：很可能是其他人。",
    "previous": "上一个",
    "next": "下一个",
    "close": "关闭",
    "cancel": "取消",
    "column_score": "分数",
    "column_camera": "摄像头",
    "column_time": "时间",
    "column_track": "轨迹",
    "column_pid": "人物",
    "column_path": "文件",
    "unknown": "未知",

    "explain_title": "模型比较的内容",
    "explain_note": "亮处使模型认为两张图片相似；暗处未被使用，或使其不相似。",
    "explain_wait": "正在计算…",
    "explain_query": "您的图片",
    "explain_match": "结果",

    "label_title": "标注人物",
    "label_name": "人物（编号或名称）",
    "label_save": "保存标签",
    "labelled_one": "已标注 {n} 张图片。",
    "labelled_other": "已标注 {n} 张图片。",
    "scope": "哪些图片",
    "scope_one": "仅这张图片",
    "scope_track": "摄像头 {camera} 轨迹 {track} 的全部图片",
    "scope_pid": "人物 {pid} 的全部图片",
    "erase_title": "从图库中删除",
    "erase_warning": "图片及其特征将被永久删除，无法撤销。",
    "erase_now": "删除",
    "erased_one": "已删除 {n} 张图片。",
    "erased_other": "已删除 {n} 张图片。",

    "capture_title": "拍照",
    "capture_hint": "请让整个人都在画面中。",
    "capture": "拍摄",
    "capture_failed": "无法使用摄像头：{detail}",

    "token_title": "需要令牌",
    "token_text": "此服务器需要令牌，请向管理员索取。关闭此标签页后即清除。",
    "token_wrong": "服务器不接受此令牌。",
    "token_field": "令牌",
    "token_send": "继续",

    "error": "操作未成功",
    "error_network": "服务器没有响应。",
    "error_token": "需要令牌。",
    "dismiss": "关闭提示"
  }
};

const LANGUAGES = Object.keys(STRINGS);
let language = localStorage.getItem("language");
if (!LANGUAGES.includes(language)) {
  language = navigator.languages.map((name) => name.slice(0, 2)).find((name) => LANGUAGES.includes(name)) ?? "en";
}

export function getLanguage() {
  return language;
}

export function setLanguage(name) {
  language = name;
  localStorage.setItem("language", name);
}

/** Return a text in the chosen language, with {names} replaced. */
export function t(key, values = {}) {
  return STRINGS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Return the plural form of a text for n things. */
export function plural(key, n) {
  return t(`${key}_${new Intl.PluralRules(language).select(n) === "one" ? "one" : "other"}`, { n: formatNumber(n) });
}

export function formatNumber(n) {
  return new Intl.NumberFormat(language).format(n);
}

/** Return a time of the API as local text, such as "27 Nov, 10:15:03"; with the year unless it is the current one. */
export function formatTime(time) {
  const date = new Date(time);
  const year = date.getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  return new Intl.DateTimeFormat(locale(), {
    year, month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
  }).format(date);
}

export function locale() {
  return language === "en" ? "en-GB" : "zh-CN";
}
